"""`onnx-moe plan`: what a machine can do with a recorded routing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.cli.routing_output import progress_bar
from onnx_moe.cli.text import megabytes, milliseconds
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    from onnx_moe.routing import Machine, Operation, Plan, RoutingTrace

_LABELS = {
    "lru": "LRU",
    "decayed-lfu": "decayed LFU",
    "static": "pinned: the most used",
    "belady": "Belady (knows the future)",
}


def plan(
    trace: Annotated[
        Path, typer.Argument(help="A trace (.npz, .jsonl, .csv), or the .npz that profile and simulate write.")
    ],
    memory: Annotated[str, typer.Option(help="For the experts, such as 16GiB.")],
    disk_bandwidth: Annotated[str, typer.Option(help="Of reads of an expert's size, such as 2GB/s.")],
    model: Annotated[str | None, typer.Option(help="A known model, for the bytes of an expert in --format.")] = None,
    format: Annotated[str, typer.Option(help="mxfp4, nvfp4 or fp4; with --model.")] = "mxfp4",
    expert_bytes: Annotated[str | None, typer.Option(help="Bytes of one expert, instead of --model.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts of a token, where the trace does not tell.")] = None,
    compute_rate: Annotated[
        float, typer.Option(help="Tokens a second with all experts in memory; 0 counts reading alone.")
    ] = 0.0,
    pins: Annotated[Path | None, typer.Option(help="Write the experts to pin, layer by layer, as JSON.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the report, opened at this budget and disk: .html, .json or .jsonl.")
    ] = None,
) -> None:
    """Say what a machine can do with a recorded routing: hits, tokens a second, what to pin, what budget to give."""
    from onnx_moe.routing import Machine, known_model
    from onnx_moe.routing import plan as make_plan
    from onnx_moe.routing.planning import parse_bandwidth, parse_bytes

    if compute_rate < 0:
        raise InvalidInputError(f"compute rate is {compute_rate}, but must be at least 0.")
    console = Console()
    calls, recorded_bytes = _load(trace, top_k)
    size = recorded_bytes
    if expert_bytes is not None:
        size = parse_bytes(expert_bytes, "expert bytes")
    elif model is not None:
        size = known_model(model).expert_bytes(format)
    if size is None:
        raise InvalidInputError(f"{trace} does not say how large an expert is: give --expert-bytes or --model.")
    computing = 1 / compute_rate if compute_rate else 0.0
    machine = Machine(parse_bytes(memory, "memory"), parse_bandwidth(disk_bandwidth), computing)
    with progress_bar(console) as progress:
        found = make_plan(calls, size, machine, progress=lambda share: progress("simulating caches", share))
    _show(console, found, machine)
    if pins is not None:
        _write_pins(pins, found, calls)
        console.print(f"Pins: {pins} ({len(found.pins)} experts).", highlight=False)
    if report is not None:
        with console.status("writing the report"):
            _write_report(report, trace, calls, found, machine)
        console.print(f"Report: {report}.", highlight=False, soft_wrap=True)


def _load(path: Path, top_k: int | None) -> tuple[RoutingTrace, int | None]:
    """A trace, or the sample of a profile and its bytes of an expert."""
    from onnx_moe.routing import RoutingProfile, load_trace

    if path.suffix == ".npz" and RoutingProfile.is_profile(path):
        profile = RoutingProfile.load(path)
        if profile.sample is None:
            raise InvalidInputError(f"{path} holds counts alone: make it from a full recording.")
        return profile.sample, profile.model.expert_bytes
    return load_trace(path, top_k=top_k), None


def _show(console: Console, plan: Plan, machine: Machine) -> None:
    table = Table(title=f"With {megabytes(machine.memory_bytes)} of {megabytes(plan.bank_bytes)} of experts")
    for heading in ("cache", "hits", "read / token", "tokens/s"):
        table.add_column(heading, justify="right" if heading != "cache" else "left")
    for name, label in _LABELS.items():
        operation = plan.policies[name]
        table.add_row(label, f"{operation.hit_rate:.1%}", megabytes(round(operation.miss_bytes)), _rate(operation))
    console.print(table)
    budgets = Table(title=f"Budgets for hit rates ({_LABELS[plan.policy]})")
    for heading in ("hits", "budget", "share", "tokens/s"):
        budgets.add_column(heading, justify="right")
    for target, found in plan.targets.items():
        if found is None:
            budgets.add_row(f"{target:.0%}", "not reached", "", "")
            continue
        budgets.add_row(f"{target:.0%}", megabytes(found.bytes), f"{found.bytes / plan.bank_bytes:.0%}", _rate(found))
    console.print(budgets)
    counted = plan.curves.tokens - plan.curves.warmup_tokens
    reading = "Reading and computing one after the other" if machine.compute_seconds else "Reading alone"
    console.print(
        f"{reading}; counted on {counted} tokens after {plan.curves.warmup_tokens} that filled the cache. A token goes "
        f"through {megabytes(plan.cycle_bytes)}: no less makes sense.",
        highlight=False,
    )


def _rate(operation: Operation) -> str:
    if math.isinf(operation.tokens_per_second):
        return "not limited"
    return f"{operation.tokens_per_second:.1f} ({milliseconds(operation.seconds)})"


def _write_report(path: Path, source: Path, calls: RoutingTrace, plan: Plan, machine: Machine) -> None:
    from onnx_moe.routing import RoutingProfile, profile_trace
    from onnx_moe.routing.report import write_report

    if source.suffix == ".npz" and RoutingProfile.is_profile(source):
        profile = RoutingProfile.load(source)
    else:
        profile = profile_trace(calls, name=source.stem, source=source.name)
    profile = replace(profile, model=replace(profile.model, expert_bytes=plan.expert_bytes))
    write_report(profile.document(), path, budget=machine.memory_bytes, bandwidth=machine.disk_bandwidth)


def _write_pins(path: Path, plan: Plan, trace: RoutingTrace) -> None:
    by_layer: dict[str, list[int]] = {name: [] for name in trace.layer_names}
    for key in plan.pins.tolist():
        layer, expert = divmod(key, trace.num_experts)
        by_layer[trace.layer_names[layer]].append(expert)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"expert_bytes": plan.expert_bytes, "pins": by_layer}, indent=1), encoding="utf-8")
