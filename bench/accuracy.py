"""What FP4 costs: weights, text, layers, and the speed of quantising, in tables and pictures: python -m bench.accuracy.

The text that is predicted (bench/text/fresh.txt) is of packages that are not in the model's training text, and the
quantiser was finished before anything was measured on it. The calibration text is the model's held-out text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import onnx_moe
from bench.accuracy_charts import draw_costs, draw_weights, save
from bench.accuracy_text import WINDOW, Cost, measure_costs
from bench.page import processor, table, write_measured
from bench.quantise import measured_quantisers, speeds, squared_errors
from bench.quantise_peers import installed_versions
from onnx_moe.accuracy import AccuracyReport, Measurement, check, measure
from onnx_moe.accuracy.html import plot_layers, plot_weights
from onnx_moe.accuracy.reference import ReferenceModel

_ROOT = Path(__file__).resolve().parents[1]
_MODEL = _ROOT / "onnx_moe" / "data" / "tiny-glm"


@dataclass(frozen=True)
class Figures:
    """Everything that was measured. errors: by distribution and quantiser; speeds: GB/s by format and rule; reports: of
    the trained model, by how its experts were quantised."""

    errors: Mapping[str, Mapping[str, float]]
    speeds: Mapping[str, float]
    costs: Sequence[Cost]
    reports: Mapping[str, AccuracyReport]


def main(
    text: Annotated[Path, typer.Option(help="To predict.")] = _ROOT / "bench" / "text" / "fresh.txt",
    calibration: Annotated[Path, typer.Option(help="To calibrate on.")] = _MODEL / "heldout.txt",
    output: Annotated[Path | None, typer.Option(help="Markdown file to write its measured part of, with PNGs.")] = None,
) -> None:
    """Measures quantisers, ours and others', and the trained model with their experts."""
    console = Console(highlight=False)
    figures = Figures(
        squared_errors(measured_quantisers(console)),
        speeds(),
        measure_costs(_MODEL, text, calibration, console),
        _reports(calibration, console),
    )
    page = _page(figures, (output or Path("accuracy.md")).stem)
    console.print(page, markup=False)
    if output is not None:
        write_measured(output, page)
        for name, draw in _pictures(figures).items():
            save(output.with_name(f"{output.stem}-{name}.png"), draw)
        console.print(f"wrote {output} and its pictures")


def _reports(calibration: Path, console: Console) -> dict[str, AccuracyReport]:
    """`onnx-moe accuracy` on the trained model, in both formats, without and with calibration."""
    reference = ReferenceModel(_MODEL, fold_shared_experts=True)
    reports = {}
    for name, options in {
        "mxfp4": {"format": "mxfp4"},
        "mxfp4, calibrated": {"format": "mxfp4", "calibrate": calibration},
        "nvfp4": {"format": "nvfp4"},
        "nvfp4, calibrated": {"format": "nvfp4", "calibrate": calibration},
    }.items():
        with tempfile.TemporaryDirectory(prefix="onnx-moe-accuracy-") as folder:
            path = Path(folder) / "tiny-glm.onnx"
            onnx_moe.export(reference.module, None, path, **options)  # type: ignore[arg-type]
            reports[name] = measure(path, reference, Measurement(_ROOT / "bench" / "text" / "fresh.txt"))
        broken = [str(finding) for finding in check(reports[name]) if not finding.good]
        console.print(f"[dim]{name}: {'; '.join(broken) or 'every check is kept to'}[/]")
    return reports


def _pictures(figures: Figures) -> dict[str, partial[None]]:
    return {
        "weights": partial(draw_weights, errors=figures.errors),
        "perplexity": partial(draw_costs, costs=figures.costs),
        "layers": partial(plot_layers, report=figures.reports["mxfp4"]),
        "experts": partial(plot_weights, report=figures.reports["mxfp4"]),
    }


def _page(figures: Figures, stem: str) -> str:
    windows = len(figures.costs[0].losses)
    sections = (
        f"## Measured on {date.today():%Y-%m-%d}\n\n{processor()}, 2 threads; {installed_versions()}. Made by "
        f"`python -m bench.accuracy --output docs/{stem}.md`.\n",
        f"### Weights\n\nSquared error in thousandths of the weights' squares.\n\n{_weights(figures.errors)}\n"
        f"![Squared error of weights by distribution]({stem}-weights.png)\n",
        f"### Speed\n\nGB of bfloat16 weights a second.\n\n{_speeds(figures.speeds)}",
        f"### Perplexity\n\nOf the model that ships, {windows * WINDOW:,} tokens of fresh text in {windows} windows; "
        f"{figures.costs[0].original_perplexity:.4f} with the original weights. In brackets: 95 % intervals over "
        f"windows.\n\n{_costs(figures.costs)}\n![Increase of perplexity by quantiser]({stem}-perplexity.png)\n",
        '### Layers of the trained model\n\n`onnx-moe accuracy` on the fresh text. "FP4 alone" is a layer\'s error on '
        f"the inputs of its own run.\n\n{_layers(figures.reports['mxfp4'])}\n"
        f"![Error and routing by layer]({stem}-layers.png)\n\n![Weight error of each expert]({stem}-experts.png)\n",
        f"### The seed's absolute limit\n\nMean squared error of the hidden states behind a layer, at its worst layer; "
        f"the seed asks for less than 0.01.\n\n{_seed(figures.reports)}",
    )
    return "\n".join(sections)


def _weights(errors: Mapping[str, Mapping[str, float]]) -> str:
    names = next(iter(errors.values()))
    rows = [[name, *(f"{1000 * by_name[name]:.2f}" for by_name in errors.values())] for name in names]
    return table(("", *errors), rows)


def _speeds(by_name: Mapping[str, float]) -> str:
    formats = list(dict.fromkeys(name.partition(", ")[0] for name in by_name))
    rules = list(dict.fromkeys(name.partition(", ")[2] for name in by_name))
    return table(
        ("", *formats),
        [[f"`{rule}`", *(f"{by_name[f'{format}, {rule}']:.2f}" for format in formats)] for rule in rules],
    )


def _costs(costs: Sequence[Cost]) -> str:
    rows = []
    for cost in costs:
        increase, removed = cost.increase, cost.removed
        rows.append(
            [
                f"{cost.format}, {cost.name}",
                f"{cost.perplexity:.4f}",
                f"{increase.mean:.2f} % ({increase.low:.2f} to {increase.high:.2f})",
                f"{removed.mean:.0f} % ({removed.low:.0f} to {removed.high:.0f})",
                f"{cost.output_error:.4f}",
            ]
        )
    return table(("", "perplexity", "increase", "less than round to nearest's", "output error"), rows)


def _layers(report: AccuracyReport) -> str:
    rows = [
        [
            str(number),
            workload.name,
            f"{layer.relative_error:.3f}",
            f"{layer.fp4_error:.3f}",
            f"{layer.arithmetic_error:.0e}",
            f"{100 * layer.routing_overlap:.1f} %",
            f"{layer.stream_mse:.4f}",
        ]
        for workload in report.workloads
        for number, layer in enumerate(workload.layers, 1)
    ]
    headings = ("layer", "workload", "error", "FP4 alone", "arithmetic", "routing overlap", "hidden states")
    return table(headings, rows)


def _seed(reports: Mapping[str, AccuracyReport]) -> str:
    workloads = next(iter(reports.values())).workloads
    rows = [
        [name, *(f"{max(layer.hidden_mse for layer in workload.layers):.4f}" for workload in report.workloads)]
        for name, report in reports.items()
    ]
    return table(("", *(workload.name for workload in workloads)), rows)


if __name__ == "__main__":
    typer.run(main)
