"""`onnx-moe plan`: what a machine can do with a recorded routing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.cli.routing_output import progress_bar
from onnx_moe.cli.text import megabytes, milliseconds, parse_bandwidth, parse_bytes
from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import RoutingProfile, known_model, load_trace, profile_trace, write_counter_file

if TYPE_CHECKING:
    from onnx_moe.routing import Machine, Operation, Plan, RoutingTrace

_LABELS = {
    "lru": "LRU",
    "decayed-lfu": "decayed LFU",
    "static": "pinned by the first quarter",
    "belady": "Belady (knows the future)",
}


def plan(
    trace: Annotated[
        Path, typer.Argument(help="A trace (.npz, .jsonl, .csv), or the .npz that profile and simulate write.")
    ],
    memory: Annotated[str, typer.Option(help="For the experts, such as 16GiB.")],
    disk_bandwidth: Annotated[str, typer.Option(help="Of reads of an expert's size, such as 2GB/s.")],
    model: Annotated[
        str | None,
        typer.Option(help="A known model, for the bytes of an expert in --format; instead of --expert-bytes."),
    ] = None,
    format: Annotated[str | None, typer.Option(help="mxfp4 (default), nvfp4 or fp4; with --model.")] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(help="Bytes of one expert, where the trace does not tell, or tells others.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts of a token, where the trace does not tell.")] = None,
    compute_rate: Annotated[
        float, typer.Option(help="Tokens a second with all experts in memory; 0 counts reading alone.")
    ] = 0.0,
    counters: Annotated[
        Path | None, typer.Option(help="Write how much each expert is used, for the session entry onnx_moe.counters.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the report, opened at this budget and disk: .html, .json or .jsonl.")
    ] = None,
) -> None:
    """Say what a machine can do with a recorded routing: hits, tokens a second, what to pin, what budget to give."""
    from onnx_moe.routing import Machine
    from onnx_moe.routing import plan as make_plan
    from onnx_moe.routing.report.writing import check_suffix

    if not (math.isfinite(compute_rate) and compute_rate >= 0):
        raise InvalidInputError(f"compute rate is {compute_rate}, but must be at least 0.")
    computing = 1 / compute_rate if compute_rate else 0.0
    machine = Machine(parse_bytes(memory, "memory"), parse_bandwidth(disk_bandwidth), computing)
    if report is not None:
        check_suffix(report)
    console = Console()
    calls, profile = _load(trace, top_k)
    known = None if profile is None else profile.model.expert_bytes
    size = _expert_bytes(calls, known, model, format, expert_bytes)
    if size is None:
        raise InvalidInputError(f"{trace} does not say how large an expert is: give --expert-bytes or --model.")
    with progress_bar(console) as progress:
        found = make_plan(calls, size, machine, progress=lambda share: progress("simulating caches", share))
    _show(console, found, machine)
    if counters is None and report is None:
        return
    with console.status("counting"):
        profile = profile or profile_trace(calls, name=trace.stem, source=trace.name)
    if counters is not None:
        write_counter_file(profile.counts, counters)
        entries = f"onnx_moe.counters = {counters}, onnx_moe.cache_bytes = {machine.memory_bytes}"
        console.print(f"Counters: {counters}. Session entries: {entries}.", highlight=False, soft_wrap=True)
    if report is not None:
        with console.status("writing the report"):
            _write_report(report, profile, found, machine)
        console.print(f"Report: {report}.", highlight=False, soft_wrap=True)


def _load(path: Path, top_k: int | None) -> tuple[RoutingTrace, RoutingProfile | None]:
    """A trace, or the sample of a profile, and the profile."""
    if path.suffix == ".npz" and RoutingProfile.is_profile(path):
        profile = RoutingProfile.load(path)
        if profile.sample is None:
            reason = profile.notes[0] if profile.notes else "make it from a full recording."
            raise InvalidInputError(f"{path} holds counts alone: {reason}")
        if top_k not in (None, profile.model.top_k):
            raise InvalidInputError(f"{path} has top_k {profile.model.top_k}, but {top_k} was given: leave it out.")
        return profile.sample, profile
    return load_trace(path, top_k=top_k), None


def _expert_bytes(
    trace: RoutingTrace, recorded: int | None, model: str | None, format: str | None, expert_bytes: str | None
) -> int | None:
    """Bytes of an expert: as given, of a known model, or as recorded. InvalidInputError for contradictions."""
    if format is not None and model is None:
        raise InvalidInputError(f"--format {format} does nothing without --model.")
    if expert_bytes is not None:
        if model is not None:
            raise InvalidInputError("--model and --expert-bytes both tell the bytes of an expert: give one.")
        return parse_bytes(expert_bytes, "expert bytes")
    if model is None:
        return recorded
    known = known_model(model)
    shapes = [(known.num_experts, known.top_k), (trace.num_experts, trace.top_k)]
    if shapes[0] != shapes[1] or trace.num_layers > known.num_hidden_layers:
        raise InvalidInputError(
            f"{known.name} has {known.num_moe_layers} MoE layers of {known.num_experts} experts, top-{known.top_k}, "
            f"but the trace has {trace.num_layers} of {trace.num_experts}, top-{trace.top_k}: give its own model."
        )
    return known.expert_bytes(format or "mxfp4")


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
        f"through {megabytes(plan.cycle_bytes)}, and the plugin starts with {megabytes(plan.least_bytes)}.",
        highlight=False,
    )


def _rate(operation: Operation) -> str:
    if math.isinf(operation.tokens_per_second):
        return "not limited"
    return f"{operation.tokens_per_second:.1f} ({milliseconds(operation.seconds)})"


def _write_report(path: Path, profile: RoutingProfile, plan: Plan, machine: Machine) -> None:
    from onnx_moe.routing.report import write_report

    profile = replace(profile, model=replace(profile.model, expert_bytes=plan.expert_bytes))
    write_report(
        profile.document(),
        path,
        budget=machine.memory_bytes,
        bandwidth=machine.disk_bandwidth,
        compute_seconds=machine.compute_seconds,
    )
