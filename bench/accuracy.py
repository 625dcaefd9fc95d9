"""What FP4 costs: weights, text, layers, and the speed of quantising, in tables and pictures: python -m bench.accuracy.

The text that is predicted (bench/text/fresh.txt) is of packages that are not in the model's training text, and the
quantiser was finished before anything was measured on it. The calibration text is the model's held-out text.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure
from rich.console import Console

import onnx_moe
from bench.accuracy_charts import draw_costs, draw_weights, save
from bench.accuracy_text import WINDOW, measure_costs
from bench.page import processor, table, write_measured
from bench.quantise import measured_quantisers, speeds, squared_errors
from bench.quantise_peers import installed_versions
from onnx_moe.accuracy import AccuracyReport, Measurement, check, measure
from onnx_moe.accuracy.html import plot_layers, plot_weights
from onnx_moe.accuracy.reference import ReferenceModel
from onnx_moe.accuracy.report import layer_number

_ROOT = Path(__file__).resolve().parents[1]
_MODEL = _ROOT / "onnx_moe" / "data" / "tiny-glm"


#: What a part of the page says, and its pictures by name.
Section = tuple[str, dict[str, Callable[[Figure], None]]]


def main(
    parts: Annotated[str, typer.Option(help="all, or some of weights, speed, mxfp4, nvfp4, layers.")] = "all",
    text: Annotated[Path, typer.Option(help="To predict.")] = _ROOT / "bench" / "text" / "fresh.txt",
    calibration: Annotated[Path, typer.Option(help="To calibrate on.")] = _MODEL / "heldout.txt",
    output: Annotated[
        Path | None, typer.Option(help="Markdown file to write those parts of, and PNGs beside it.")
    ] = None,
) -> None:
    """Measures quantisers, ours and others', and the trained model with their experts."""
    console = Console(highlight=False)
    known: dict[str, Callable[[], Section]] = {
        "weights": lambda: _weights(console),
        "speed": _speed,
        "mxfp4": lambda: _text("mxfp4", text, calibration, console),
        "nvfp4": lambda: _text("nvfp4", text, calibration, console),
        "layers": lambda: _layers(text, calibration, console),
    }
    chosen = list(known) if parts == "all" else parts.split(",")
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(
                f"{name!r} is unknown: use all, or some of {', '.join(known)}", param_hint="--parts"
            )
    for name in chosen:
        section, pictures = known[name]()
        section = f"{section}\nMeasured on {date.today():%Y-%m-%d}: {processor()}, {os.cpu_count()} processors.\n\n"
        console.print(section, markup=False)
        if output is None:
            continue
        shown = "".join(f"![{title}]({_picture(output, title).name})\n\n" for title in pictures)
        write_measured(output, section + shown, name)
        for title, draw in pictures.items():
            save(_picture(output, title), draw)
        console.print(f"wrote {name} of {output}")


def _picture(page: Path, title: str) -> Path:
    return page.with_name(f"{page.stem}-{title.lower().replace(' ', '-')}.png")


def _weights(console: Console) -> Section:
    errors = squared_errors(measured_quantisers(console))
    rows = [
        [name, *(f"{1000 * by_name[name]:.2f}" for by_name in errors.values())] for name in next(iter(errors.values()))
    ]
    text = (
        "### Weights\n\nSquared error in thousandths of the weights' squares. Others cast weights as by default:\n"
        f"{installed_versions()}. Random weights are 1536 × 2048, outliers 0.2 % of them times 30,\n"
        f"the trained experts those of the model that ships.\n\n{table(('', *errors), rows)}"
    )
    return text, {"weights": partial(draw_weights, errors=errors)}


def _speed() -> Section:
    by_name = speeds()
    formats = list(dict.fromkeys(name.partition(", ")[0] for name in by_name))
    rules = list(dict.fromkeys(name.partition(", ")[2] for name in by_name))
    rows = [[f"`{rule}`", *(f"{by_name[f'{format}, {rule}']:.2f}" for format in formats)] for rule in rules]
    heading = "### Speed\n\nGB of bfloat16 weights a second, best of five on eight matrices of 1536 × 2048.\n\n"
    return heading + table(("", *formats), rows), {}


def _text(format: str, text: Path, calibration: Path, console: Console) -> Section:
    costs = measure_costs(_MODEL, format, text, calibration, console)
    rows = []
    for cost in costs:
        increase, removed = cost.increase, cost.removed
        rows.append(
            [
                cost.name,
                f"{cost.perplexity:.4f}",
                f"{increase.mean:.2f} % ({increase.low:.2f} to {increase.high:.2f})",
                f"{removed.mean:.0f} % ({removed.low:.0f} to {removed.high:.0f})",
                f"{cost.output_error:.4f}",
            ]
        )
    windows = len(costs[0].losses)
    heading = (
        f"### Perplexity in {format}\n\nOf the model that ships, on {windows * WINDOW:,} tokens in {windows} windows "
        f"of `{text.name}`: {costs[0].original_perplexity:.4f} with the original weights.\nCalibrated on "
        f"`{calibration.name}`. In brackets: 95 % intervals over windows. Output error: of all layers together,\n"
        "relative, on the original inputs.\n\n"
    )
    headings = ("", "perplexity", "increase", "of round to nearest's increase removed", "output error")
    return heading + table(headings, rows), {f"perplexity {format}": partial(draw_costs, costs=costs)}


def _layers(text: Path, calibration: Path, console: Console) -> Section:
    reports = _reports(text, calibration, console)
    plain = reports["mxfp4"]
    rows = [
        [
            layer_number(layer.layer),
            workload.name,
            f"{layer.relative_error:.3f}",
            f"{layer.fp4_error:.3f}",
            f"{layer.arithmetic_error:.0e}",
            f"{100 * layer.routing_overlap:.1f} %",
            f"{layer.stream_mse:.4f}",
        ]
        for workload in plain.workloads
        for layer in workload.layers
    ]
    headings = ("layer", "workload", "error", "FP4 alone", "arithmetic", "routing overlap", "hidden states")
    seed = [
        [name, *(f"{max(layer.hidden_mse for layer in workload.layers):.4f}" for workload in report.workloads)]
        for name, report in reports.items()
    ]
    page = (
        f'### Layers of the trained model in mxfp4\n\n`onnx-moe accuracy` on `{text.name}`. "FP4 alone" is a layer\'s '
        f"error on the inputs of its own run.\n\n{table(headings, rows)}\n{plain.golden.agreeing} of "
        f"{plain.golden.tokens} golden tokens are predicted; where one is not, the reference's lead is "
        f"{max(plain.golden.wrong_margins, default=0):.1f} logits at most.\n\n"
        "Mean squared error of the hidden states, behind the layer where it is largest; the seed asks for less than "
        f"0.01:\n\n{table(('', *(workload.name for workload in plain.workloads)), seed)}"
    )
    return page, {"layers": partial(plot_layers, report=plain), "experts": partial(plot_weights, report=plain)}


def _reports(text: Path, calibration: Path, console: Console) -> dict[str, AccuracyReport]:
    """`onnx-moe accuracy` on the trained model, in both formats, without and with calibration."""
    reference = ReferenceModel(_MODEL, fold_shared_experts=True)
    reports = {}
    for format in ("mxfp4", "nvfp4"):
        for name, options in ((format, {}), (f"{format}, calibrated", {"calibrate": calibration})):
            with tempfile.TemporaryDirectory(prefix="onnx-moe-accuracy-") as folder:
                path = Path(folder) / "tiny-glm.onnx"
                onnx_moe.export(reference.module, None, path, format=format, **options)
                reports[name] = measure(path, reference, Measurement(text))
            broken = [str(finding) for finding in check(reports[name]) if not finding.good]
            console.print(f"[dim]{name}: {'; '.join(broken) or 'every check is kept to'}[/]")
    return reports


if __name__ == "__main__":
    typer.run(main)
