"""`onnx-moe bench`: measurements on this machine."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from onnx_moe.cli.text import megabytes

if TYPE_CHECKING:
    from onnx_moe.residency_bench import Measurement, Report

#: Text that repeats itself more makes a cache look better than it is.
_TYPICAL_REPEATS = 0.5

bench = typer.Typer(help="Measure models on this machine.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    """Keeps `residency` a command of its own, though it is the only one."""


@bench.command()
def residency(
    model: Annotated[
        str, typer.Argument(help="An exported decoder (.onnx), or tiny-glm: the trained model of this package.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Text that the model goes on with, or token ids: 5,17,3.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the prompt's tokenizer.", show_default="the model's folder")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Memory for experts, as onnx_moe.cache_bytes.")] = "10%,25%,50%,75%,100%",
    policies: Annotated[str, typer.Option(help="Who leaves the cache: lru, decayed-lfu.")] = "lru,decayed-lfu",
    prefetch: Annotated[
        str, typer.Option(help="What is read ahead by: off, repeat, history, recency, cross-layer, next-gate.")
    ] = "off,cross-layer,next-gate",
    tokens: Annotated[int, typer.Option(help="Tokens that are timed.")] = 64,
    warm_up: Annotated[int, typer.Option(help="Tokens before them.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often each combination is measured.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads that compute.")] = 1,
    direct_io: Annotated[
        str, typer.Option(help="on: read past the page cache, so that a miss is a read from the disk; off; auto.")
    ] = "on",
    json: Annotated[Path | None, typer.Option(help="A file to write every figure to.")] = None,
    chart: Annotated[Path | None, typer.Option(help="A .png to draw; needs matplotlib.")] = None,
) -> None:
    """Let a model write text with its experts under budgets of memory: speed, hits, bytes and stalls."""
    from onnx_moe.residency_bench import Sweep, find_model, run_sweep
    from onnx_moe.residency_bench.chart import check_matplotlib, draw
    from onnx_moe.residency_bench.measure import Run

    if chart is not None:
        check_matplotlib()
    sweep = Sweep(_parts(budgets), _parts(policies), _parts(prefetch), rounds)
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        with find_model(model, prompt, tokenizer, lambda line: progress.update(task, description=line)) as found:
            report = run_sweep(
                found,
                sweep,
                Run(tokens, warm_up, threads, direct_io),
                lambda line, done, of: progress.update(task, description=line, completed=done, total=of),
            )
    _show(console, report)
    if json is not None:
        json.write_text(json_format.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
        console.print(f"Figures: {json}", highlight=False)
    if chart is not None:
        draw(report, chart)
        console.print(f"Chart: {chart}", highlight=False)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _show(console: Console, report: Report) -> None:
    table = Table(
        title=f"{report.model}: {report.run.tokens} tokens after {report.run.warm_up}",
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("budget", "policy", "prefetch"):
        table.add_column(heading, no_wrap=True)
    for heading in ("tokens/s", "hits", "Belady", "read", "stall", "of use"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("mapped", "", "", f"{report.mapped.tokens_per_second:.1f}", "", "", "", "", "", end_section=True)
    for number, measurement in enumerate(report.pooled, start=1):
        last = number % (len(report.sweep.policies) * len(report.sweep.prefetch)) == 0
        table.add_row(*_cells(measurement, report.belady.get(measurement.capacity)), end_section=last)
    console.print(table)
    console.print(
        "hits and Belady: % of lookups found in the cache, and at best; read and stall: of a token, bytes and ms; "
        "of use: of the experts read ahead.",
        style="dim",
        highlight=False,
    )
    for refusal in dict.fromkeys(f"{each.setting.budget} {each.refused}" for each in report.pooled if each.refused):
        console.print(f"Refused: {refusal}", highlight=False)
    console.print(f"Page cache: {report.page_cache}.", highlight=False)
    written = report.run.tokens + report.run.warm_up
    repeated = f"{100 * report.repeated_share:.0f} % of its runs of 8 tokens repeat earlier ones"
    console.print(f"Every setting wrote the same {written} tokens; {repeated}:", highlight=False)
    console.print(report.text, style="dim", markup=False, highlight=False)
    if report.repeated_share > _TYPICAL_REPEATS:
        console.print(
            "[yellow]The text repeats itself, and so does its routing: hits are too good to be typical. Give another "
            "--prompt.[/]"
        )


def _cells(measurement: Measurement, belady: float | None) -> tuple[str, ...]:
    setting = measurement.setting
    names = (setting.budget or "", setting.policy, setting.prefetch)
    if measurement.refused:
        return (*names, "refused", "", "", "", "", "")
    ahead = measurement.read_ahead
    issued = ahead["timely"] + ahead["late"] + ahead["wasted"] if ahead else 0
    return (
        *names,
        f"{measurement.tokens_per_second:.1f}",
        f"{100 * measurement.hit_rate:.1f}",
        "" if belady is None else f"{100 * belady:.1f}",
        megabytes(round(measurement.bytes_per_token)),
        f"{measurement.stall_ms_per_token:.2f}",
        f"{100 * (ahead['timely'] + ahead['late']) / issued:.0f} %" if ahead and issued else "",
    )
