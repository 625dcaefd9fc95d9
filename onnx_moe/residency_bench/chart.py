"""The sweep as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_moe.errors import OnnxMoeError
from onnx_moe.residency_bench.measure import Measurement
from onnx_moe.residency_bench.sweep import Report

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
_MARKERS = {"off": "o", "repeat": "s", "history": "D", "recency": "v", "cross-layer": "^", "next-gate": "P"}
_PANELS: dict[str, Callable[[Measurement], float]] = {
    "tokens a second": lambda measurement: measurement.tokens_per_second,
    "hit rate, %": lambda measurement: 100 * measurement.hit_rate,
    "kB read a token": lambda measurement: measurement.bytes_per_token / 1e3,
    "stall, ms a token": lambda measurement: measurement.stall_ms_per_token,
}


def check_matplotlib() -> None:
    """Raises OnnxMoeError where matplotlib is missing: before the measurement, not after it."""
    try:
        import matplotlib
    except ImportError as error:
        raise OnnxMoeError(f"the chart needs matplotlib ({error}): pip install matplotlib") from error
    matplotlib.use("Agg")  # a file, no window


def draw(report: Report, path: Path) -> None:
    """Writes a chart of tokens a second, hit rate, bytes and stall by budget; OnnxMoeError without matplotlib."""
    check_matplotlib()
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True, layout="constrained")
    for axis, (title, value) in zip(axes.flat, _PANELS.items(), strict=True):
        for line, measurements in _lines(report).items():
            x = [100 * _share(report, measurement) for measurement in measurements]
            axis.plot(x, [value(measurement) for measurement in measurements], **_style(report, *line))
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    _draw_limits(report, *axes.flat[:2])
    for axis in axes[1]:
        axis.set_xlabel("budget, % of all experts")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, frameon=False)
    threads = f"{report.run.threads} thread{'s' if report.run.threads > 1 else ''}"
    figure.suptitle(
        f"{report.model}: {report.run.tokens} tokens of greedy text, {threads}, medians of {report.sweep.rounds}\n"
        f"page cache: {report.page_cache}",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _lines(report: Report) -> dict[tuple[str, str], list[Measurement]]:
    """Measurements of each policy and signal, by budget."""
    lines: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in report.pooled:
        if not measurement.refused:
            lines.setdefault((measurement.setting.policy, measurement.setting.prefetch), []).append(measurement)
    return lines


def _share(report: Report, measurement: Measurement) -> float:
    whole = max(each.budget_bytes for each in report.pooled)
    return measurement.budget_bytes / whole if whole else 0.0


def _style(report: Report, policy: str, prefetch: str) -> dict[str, Any]:
    return {
        "color": _COLOURS[report.sweep.policies.index(policy) % len(_COLOURS)],
        "marker": _MARKERS.get(prefetch, "x"),
        "linestyle": "-" if prefetch == "off" else "--",
        "markersize": 5,
        "label": policy if prefetch == "off" else f"{policy}, prefetch {prefetch}",
    }


def _draw_limits(report: Report, speed: Any, hits: Any) -> None:
    speed.axhline(report.mapped.tokens_per_second, color="black", linestyle=":", label="mapped: all in memory")
    bound: dict[float, float] = {}
    for measurement in report.pooled:  # sessions that read ahead have fewer slots; the bound is that of all slots
        if measurement.capacity in report.belady:
            share = 100 * _share(report, measurement)
            bound[share] = max(bound.get(share, 0.0), 100 * report.belady[measurement.capacity])
    if bound:
        hits.plot(list(bound), list(bound.values()), color="black", linestyle="-.", label="Belady: no policy hits more")
