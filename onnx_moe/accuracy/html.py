"""A report as one HTML page that needs nothing beside it: verdicts, tables, plots."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_moe.accuracy.limits import Finding
from onnx_moe.accuracy.report import AccuracyReport, layer_number
from onnx_moe.errors import OnnxMoeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } .good { color: #1a7f37 } .bad { color: #cf222e; font-weight: 600 }
td.where { text-align: left; color: #57606a; white-space: normal }
th:last-child { text-align: left } img { max-width: 100% } .scroll { overflow-x: auto }
.numbers { display: flex; gap: 2rem; flex-wrap: wrap } .numbers b { display: block; font-size: 1.6rem }
"""


def check_matplotlib() -> None:
    """Raises OnnxMoeError where matplotlib is missing: before a measurement, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OnnxMoeError(f"the HTML report draws with matplotlib ({error}): pip install matplotlib") from error


def write_html(report: AccuracyReport, findings: Sequence[Finding], path: Path) -> None:
    """Writes the page. OnnxMoeError when matplotlib is missing or the file cannot be written."""
    body = [
        f"<h1>Accuracy of {escape(Path(report.model).name)}</h1>",
        f"<p>{escape(report.format)}{', calibrated' if report.calibrated else ''}, against "
        f"{escape(report.reference)} in float32.</p>",
        _numbers(report),
        "<h2>Checks</h2>",
        _findings(findings),
        "<h2>Layers</h2>",
        _image(plot_layers, report),
        _layers(report),
        "<h2>Weights of experts</h2>",
        "<p>Relative RMSE of each expert; the grey line is what the format leaves of weights of that distribution.</p>",
        _image(plot_weights, report),
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Accuracy of {escape(Path(report.model).name)}</title><style>{_STYLE}</style>{''.join(body)}</html>"
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OnnxMoeError(f"{path} cannot be written: {error}. Choose another file.") from error


def _numbers(report: AccuracyReport) -> str:
    text, golden = report.text, report.golden
    values = (
        (f"{text.perplexity:.3f}", f"perplexity; the reference has {text.reference_perplexity:.3f}"),
        (
            f"{100 * text.increase.mean:+.2f} %",
            f"95 % interval {100 * text.increase.low:+.2f} to {100 * text.increase.high:+.2f} %",
        ),
        (f"{100 * text.top1_agreement:.1f} %", "same most likely token"),
        (f"{text.kl_divergence.mean:.4f}", "KL divergence, nats a token"),
        (f"{golden.agreeing} of {golden.tokens}", "golden tokens"),
    )
    return "<div class=numbers>" + "".join(f"<div><b>{value}</b>{label}</div>" for value, label in values) + "</div>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


def _cell(text: str, kind: str = "") -> str:
    return f"<td class='{kind}'>{escape(text)}</td>" if kind else f"<td>{escape(text)}</td>"


def _findings(findings: Sequence[Finding]) -> str:
    rows = [
        [
            _cell(finding.name),
            _cell(f"{finding.value:.4g}", "good" if finding.good else "bad"),
            _cell(f"{finding.limit:.4g}"),
            _cell("kept" if finding.good else "broken", "good" if finding.good else "bad"),
            _cell(finding.where, "where"),
        ]
        for finding in findings
    ]
    return _table(("check", "measured", "limit", "", "worst at"), rows)


def _layers(report: AccuracyReport) -> str:
    rows = [
        [
            _cell(layer_number(layer.layer)),
            _cell(workload.name),
            _cell(f"{layer.relative_error:.4f}"),
            _cell(f"{layer.mse:.2e}"),
            _cell(f"{layer.hidden_mse:.2e}"),
            _cell(f"{layer.stream_mse:.2e}"),
            _cell(f"{layer.fp4_error:.4f}"),
            _cell(f"{layer.arithmetic_error:.1e}"),
            _cell(f"{100 * layer.routing_overlap:.1f} %"),
            _cell("–" if layer.router_agreement is None else f"{100 * layer.router_agreement:.2f} %"),
            _cell(str(layer.distinct_experts)),
        ]
        for workload in report.workloads
        for layer in workload.layers
    ]
    headings = (
        "layer",
        "workload",
        "error",
        "MSE",
        "hidden MSE",
        "relative",
        "FP4 alone",
        "arithmetic",
        "routing",
        "router",
        "experts",
    )
    return _table(headings, rows)


def _image(plot: Callable[[Any, AccuracyReport], None], report: AccuracyReport) -> str:
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    plot(figure, report)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def plot_layers(figure: Any, report: AccuracyReport) -> None:
    """Onto a matplotlib Figure: error of each layer's output, and the experts that both runs choose."""
    left, right = figure.subplots(1, 2)
    names = [layer.layer for layer in report.workloads[0].layers]
    short = [layer_number(name) for name in names]
    for workload in report.workloads:
        left.plot(short, [layer.relative_error for layer in workload.layers], "o-", label=workload.name)
        right.plot(short, [100 * layer.routing_overlap for layer in workload.layers], "o-", label=workload.name)
    longest = report.workloads[-2].layers
    left.plot(short, [layer.fp4_error for layer in longest], "k--", label="this layer's FP4 alone")
    left.set(title="relative error of a layer's output", ylim=(0, None))
    right.set(title="experts chosen as in the reference's run, %", ylim=(None, 100.5))
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("layer")
        _tidy(axes)


def plot_weights(figure: Any, report: AccuracyReport) -> None:
    """Onto a matplotlib Figure: weight error of each expert, beside what the format leaves of such weights."""
    axes = figure.subplots()
    for position, part in enumerate(report.experts):
        count = len(part.relative_rmse)
        places = [position + 0.8 * expert / count for expert in range(count)]
        colours = ["#cf222e" if expert in part.outliers else "#0969da" for expert in range(count)]
        axes.scatter(places, part.relative_rmse, s=6, c=colours)
        axes.plot(places, part.expected, color="#8c959f", linewidth=1)
    axes.set_xticks(
        [position + 0.4 for position in range(len(report.experts))],
        [f"{layer_number(part.layer)} {part.projection}" for part in report.experts],
        rotation=30 if len(report.experts) > 8 else 0,
    )
    axes.set_title("relative RMSE of each expert's weights; line: what an ideal quantiser leaves")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#d8dee4")
    axes.spines[["top", "right"]].set_visible(False)
