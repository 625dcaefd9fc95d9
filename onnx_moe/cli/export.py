"""`onnx-moe export`: a Torch module, made by a Python function, to an ONNX file."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.cli.text import megabytes
from onnx_moe.errors import ExportError


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:CALLABLE",
            help="A Python function without arguments that returns (module, example_inputs); example_inputs may be "
            "None for a causal language model of transformers.",
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The .onnx file to write; weights go to OUTPUT.data beside it.")],
    format: Annotated[str, typer.Option(help="mxfp4, nvfp4 or fp4.")] = "mxfp4",
    block_size: Annotated[int, typer.Option(help="Weights to a scale; 0 is the format's own.")] = 0,
    scale: Annotated[str, typer.Option(help="How block scales are chosen: mse, even, ceil, floor or rceil.")] = "mse",
    accuracy_level: Annotated[int, typer.Option(help="Of activations: 0 float32, 2 float16, 3 bfloat16, 4 int8.")] = 0,
    layout: Annotated[
        str, typer.Option(help="Of the weights: rows, as checkpoints have them, or interleaved, faster on CPUs.")
    ] = "rows",
    dense: Annotated[
        str, typer.Option(help="Weights outside the experts: float as they are, int8 or int4 for MatMulNBits.")
    ] = "float",
    fold_shared_experts: Annotated[bool, typer.Option(help="Append shared experts to the routed ones, in FP4.")] = True,
    router_logits: Annotated[
        bool, typer.Option("--router-logits", help="Make the routers' logits outputs, too.")
    ] = False,
    functions: Annotated[bool, typer.Option(help="Carry bodies that run without the plugin.")] = True,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="A text file in UTF-8: fit the experts to the tokens that it sends to them. Takes minutes."),
    ] = None,
) -> None:
    """Export a Torch module with MoE layers to ONNX with FP4 experts."""
    from onnx_moe.export import export as export_module  # Torch takes seconds to import

    console = Console()
    module, example_inputs = _call(source)
    with console.status("starting") as status:
        report = export_module(
            module,
            example_inputs,
            output,
            format=format,
            block_size=block_size,
            scale=scale,
            accuracy_level=accuracy_level,
            weight_layout=layout,
            dense=dense,
            fold_shared_experts=fold_shared_experts,
            router_logits=router_logits,
            functions=functions,
            calibrate=calibrate,
            progress=status.update,
        )
    table = Table(title=f"{report.path}: {len(report.layers)} MoE layers in {report.format}")
    for heading in ("layer", "experts", "top-k", "shared", "size", "router"):
        table.add_column(heading)
    for layer in report.layers:
        table.add_row(
            layer.path or "(module)",
            str(layer.num_experts),
            str(layer.top_k),
            str(layer.shared_experts),
            f"{layer.hidden_size} × {layer.intermediate_size}",
            layer.router,
        )
    console.print(table)
    console.print(f"{megabytes(report.module_bytes)} became {megabytes(report.model_bytes)}.")
    for note in report.notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)


def _call(source: str) -> tuple[Any, Any]:
    """What the function named "module:callable" returns."""
    module_name, separator, name = source.partition(":")
    if not separator or not name:
        raise ExportError(f"{source!r} does not name a function: write module:callable, such as my_model:build.")
    sys.path.insert(0, "")  # as python -m does
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ExportError(
            f"{source!r} cannot be loaded: {error}. Run from the folder that holds {module_name}."
        ) from error
    result = function()
    if not isinstance(result, tuple) or len(result) != 2:
        raise ExportError(f"{source} returns a {type(result).__name__}: return (module, example_inputs).")
    return result
