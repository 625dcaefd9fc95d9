"""`onnx-moe accuracy`: an exported model against the one that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.errors import InvalidModelError, OnnxMoeError

if TYPE_CHECKING:
    from onnx_moe.accuracy import AccuracyReport, Finding


def accuracy(
    model: Annotated[Path, typer.Argument(help="A decoder that `onnx-moe export` wrote.")],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the transformers model that it was made from; default: the one that the file names, in the "
            "current folder or beside the model."
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Held-out text in UTF-8; default: the text that ships.")] = None,
    windows: Annotated[int, typer.Option(min=2, help="Windows of 512 tokens that perplexity is taken over.")] = 32,
    golden: Annotated[
        Path | None,
        typer.Option(help="Golden tokens, written there if the file does not exist; default: what it writes now."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write every figure there.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and plots there.")] = None,
) -> None:
    """Measure an exported model's error: layers, routing, weights, perplexity. Exit code 1 if a check fails."""
    try:
        from onnx_moe.accuracy import Golden, Measurement, check, make_golden, measure
        from onnx_moe.accuracy.html import check_matplotlib, write_html
        from onnx_moe.accuracy.reference import ReferenceModel
    except ImportError as error:
        raise OnnxMoeError(f"accuracy needs Torch and transformers ({error}): pip install 'onnx-moe[torch]'") from error

    if html is not None:
        check_matplotlib()
    console = Console()
    folder = reference or _named_reference(model)
    with console.status("loading the reference") as status:
        original = ReferenceModel(folder, fold_shared_experts=True)
        tokens = None
        if golden is not None and golden.exists():
            tokens = Golden.load(golden, original)
        elif golden is not None:
            tokens = make_golden(original)
            tokens.save(golden)
        report = measure(model, original, Measurement(text, text_windows=windows), tokens, status.update)
    findings = check(report)
    _show(console, report, findings)
    if json is not None:
        report.save(json)
    if html is not None:
        write_html(report, findings, html)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def _named_reference(model: Path) -> Path:
    import onnx

    if not model.is_file():
        raise InvalidModelError(f"{model} is not a file: give the path of an .onnx model.")
    try:
        properties = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    except Exception as error:  # protobuf and onnx raise types of their own
        raise InvalidModelError(f"{model} is not an ONNX model: {error}") from error
    source = str(properties.get("onnx_moe.source", ""))
    for place in (Path(), model.parent, model.parent.parent):
        if source and (place / source / "config.json").is_file():
            return place / source
    raise InvalidModelError(
        f"{model} was made from {source or 'an unnamed model'}, which lies neither here nor beside it: give "
        "--reference FOLDER."
    )


def _show(console: Console, report: AccuracyReport, findings: Sequence[Finding]) -> None:
    from onnx_moe.accuracy.report import layer_number

    layers = Table(title=f"{Path(report.model).name}: {report.format}{', calibrated' if report.calibrated else ''}")
    for heading in ("layer", "workload", "error", "FP4 alone", "arithmetic", "routing", "experts"):
        layers.add_column(heading, justify="left" if heading in ("layer", "workload") else "right")
    for workload in report.workloads:
        for layer in workload.layers:
            layers.add_row(
                layer_number(layer.layer),
                workload.name,
                f"{layer.relative_error:.4f}",
                f"{layer.fp4_error:.4f}",
                f"{layer.arithmetic_error:.1e}",
                f"{100 * layer.routing_overlap:.1f} %",
                str(layer.distinct_experts),
            )
    console.print(layers)
    text = report.text
    console.print(
        f"Perplexity {text.perplexity:.3f}, of the reference {text.reference_perplexity:.3f}: "
        f"{100 * text.increase.mean:+.2f} % (95 % interval {100 * text.increase.low:+.2f} to "
        f"{100 * text.increase.high:+.2f}); KL {text.kl_divergence.mean:.4f}, top-1 {100 * text.top1_agreement:.1f} %.",
        highlight=False,
    )
    checks = Table(title="checks")
    for heading in ("check", "measured", "limit", "worst at"):
        checks.add_column(heading, justify="right" if heading in ("measured", "limit") else "left")
    for finding in findings:
        colour = "green" if finding.good else "bold red"
        checks.add_row(finding.name, f"[{colour}]{finding.value:.4g}[/]", f"{finding.limit:.4g}", finding.where)
    console.print(checks)
