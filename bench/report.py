"""What a run shows: tables for the terminal and for Markdown, and a chart."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from rich.table import Table

from bench.implementations import is_ours
from bench.measure import Result

#: Which of ours is compared with which peer.
_LEVEL_0 = ("mxfp4, level 0", "mxfp4 interleaved, level 0")
_LEVEL_4 = ("mxfp4, level 4", "mxfp4 interleaved, level 4")
COMPARISONS = {
    "QMoE mxfp4": (*_LEVEL_0, *_LEVEL_4),
    "QMoE nvfp4": ("nvfp4, level 0", "nvfp4 interleaved, level 0"),
    "QMoE int4/32, level 0": _LEVEL_0,
    "QMoE int4/32, level 4": _LEVEL_4,
    "QMoE int4/128, level 4": _LEVEL_4,
    "ggml mxfp4": _LEVEL_4,
}

#: How many times faster ours are to be, by tokens: floors for GLM-4.7-Flash's block.
FLOORS = {
    "mxfp4 interleaved, level 0 vs QMoE mxfp4": {1: 1.3, 16: 1.2, 128: 1.15, 512: 1.15},
    "mxfp4 interleaved, level 4 vs QMoE mxfp4": {1: 1.6, 16: 1.8, 128: 3.0, 512: 3.3},
    "mxfp4 interleaved, level 4 vs QMoE int4/128, level 4": {1: 1.2, 16: 1.3, 128: 2.0, 512: 2.1},
}


def group(results: Iterable[Result]) -> list[tuple[str, int, list[Result]]]:
    """Results by shape and threads."""
    by = groupby(results, key=lambda result: (result.shape.name, result.threads))
    return [(name, threads, list(items)) for (name, threads), items in by]


def _ratios(result: Result) -> dict[str, float]:
    """How many times faster ours are, by "ours / peer"."""
    return {
        f"{ours} vs {peer}": result.seconds[peer] / result.seconds[ours]
        for peer, all_ours in COMPARISONS.items()
        for ours in all_ours
        if peer in result.seconds and ours in result.seconds
    }


def _rows(results: list[Result]) -> tuple[list[str], list[list[str]]]:
    """Headings (the token counts) and rows: milliseconds, ratios, shares of the limit."""
    headings = ["", *(str(result.tokens) for result in results)]
    rows = [
        [name, *(f"{1e3 * result.seconds[name]:.2f}" if name in result.seconds else "" for result in results)]
        for name in results[0].seconds
    ]
    ratios = [_ratios(result) for result in results]
    rows += [[f"**{name}**", *(f"**{row[name]:.2f}×**" if name in row else "" for row in ratios)] for name in ratios[0]]
    ours = [name for name in results[0].share if is_ours(name)]
    rows += [[f"share of the limit: {name}", *(f"{result.share[name]:.0%}" for result in results)] for name in ours]
    rows += [["read loop, GB/s", *(f"{result.limits.read / 1e9:.1f}" for result in results)]]
    return headings, rows


def terminal_table(name: str, threads: int, results: list[Result]) -> Table:
    """For Rich. Milliseconds by tokens."""
    headings, rows = _rows(results)
    table = Table(title=f"{name}, {threads} thread(s): ms a call, by tokens. {describe(results)}")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*(cell.replace("**", "") for cell in row))
    return table


def describe(results: list[Result]) -> str:
    """The rates of arithmetic that the machine reached: medians over all token counts."""
    fma, dot, tiles = (
        statistics.median(getattr(result.limits, name) for result in results) / 1e12 for name in ("fma", "dot", "tiles")
    )
    of_dot = f", {dot:.2f} TOPS of int8 dot products" if dot else ""
    of_tiles = f", {tiles:.2f} TFLOPS of bfloat16 tiles" if tiles else ""
    return f"Limits: {fma:.2f} TFLOPS of multiply-adds{of_dot}{of_tiles}."


def markdown(name: str, threads: int, results: list[Result]) -> str:
    headings, rows = _rows(results)
    lines = [f"### {name}, {threads} thread{'s' if threads > 1 else ''}", "", describe(results), ""]
    lines += [f"| {' | '.join(headings)} |", f"|{' --- |' + ' ---: |' * (len(headings) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if name == "GLM-4.7-Flash":
        lines += _floors(results)
    return "\n".join(lines) + "\n"


def _floors(results: list[Result]) -> list[str]:
    """Lines of a table: what is reached of FLOORS, and whether it is enough."""
    lines = []
    for name, floors in FLOORS.items():
        reached = {result.tokens: _ratios(result).get(name) for result in results}
        cells = [
            f"{tokens}: {ratio:.2f} of {floors[tokens]}{'' if ratio >= floors[tokens] else ' (**below**)'}"
            for tokens, ratio in reached.items()
            if tokens in floors and ratio
        ]
        if cells:
            lines.append(f"- {name}: {', '.join(cells)}")
    return ["", "Floors, by tokens:", "", *lines] if lines else []


def chart(results: list[Result], path: Path) -> None:
    """A panel for each shape and thread count: tokens a second by tokens of a call, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = group(results)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(7.5 * columns, 5.5 * lines), squeeze=False, layout="constrained"
    )
    for axis, (name, threads, items) in zip(axes.flat, groups, strict=False):
        for implementation in items[0].seconds:
            ours = is_ours(implementation)
            measured = [result for result in items if implementation in result.seconds]
            axis.plot(
                [result.tokens for result in measured],
                [result.tokens / result.seconds[implementation] for result in measured],
                marker="o" if ours else ".",
                linewidth=2.2 if ours else 1.1,
                linestyle="-" if ours else "--",
                label=("onnx-moe " if ours else "") + implementation,
            )
        axis.set(xscale="log", yscale="log", title=f"{name}, {threads} thread{'s' if threads > 1 else ''}")
        axis.set(xlabel="tokens of a call", ylabel="tokens a second")
        ticks = [result.tokens for result in items]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    for axis in list(axes.flat)[len(groups) :]:
        axis.remove()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
