"""`onnx-moe export`: a checkpoint's folder, or a Torch module made by a Python function, to ONNX."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.cli.checkpoint_progress import CheckpointProgress
from onnx_moe.cli.text import megabytes, parse_bytes
from onnx_moe.errors import ExportError

if TYPE_CHECKING:
    from onnx_moe.export import ExportedLayer

_CHECKPOINT = "Checkpoints"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint: a folder in Hugging Face layout, or a name on the hub. Or module:callable, a Python "
            "function without arguments that returns (module, example_inputs); example_inputs may be None for a causal "
            "language model of transformers.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(help="For a checkpoint the new folder, for a module the .onnx file to write.")
    ],
    format: Annotated[
        str | None, typer.Option(help="mxfp4, nvfp4 or fp4. By default the checkpoint's own FP4 format, else mxfp4.")
    ] = None,
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
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32 (default) or float16, outside the experts.", rich_help_panel=_CHECKPOINT, show_default=False
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="sdpa (default where the architecture has it) or eager, to be traced.",
            rich_help_panel=_CHECKPOINT,
            show_default=False,
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            help="Size of the files of weights, 2GiB by default; an interrupted export keeps whole ones.",
            rich_help_panel=_CHECKPOINT,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Export a checkpoint, or a Torch module with MoE layers, to ONNX with FP4 experts."""
    common = {
        "format": format,
        "block_size": block_size,
        "scale": scale,
        "accuracy_level": accuracy_level,
        "weight_layout": layout,
        "dense": dense,
        "fold_shared_experts": fold_shared_experts,
        "router_logits": router_logits,
        "functions": functions,
    }
    checkpoint = {
        "dtype": dtype,
        "attention": attention,
        "shard_bytes": None if shard_size is None else parse_bytes(shard_size, "shard size"),
    }
    module = {"calibrate": calibrate}
    if _names_a_checkpoint(source):
        _refuse(module, "Python functions", f"{source} is a checkpoint")
        _export_checkpoint(source, output, {**common, **_given(checkpoint)})
        return
    _refuse(checkpoint, "checkpoints", f"{source} is a Python function")
    _export_module(source, output, {**common, "format": format or "mxfp4", **_given(module)})


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: Mapping[str, Any], proper: str, given: str) -> None:
    """ExportError if one of `options`, which mean something for the `proper` kind of source alone, is given."""
    for name in _given(options):
        option = {"shard_bytes": "shard-size"}.get(name, name)
        raise ExportError(f"--{option} is for {proper}, but {given}: leave it out.")


def _names_a_checkpoint(source: str) -> bool:
    """A folder, a path or owner/name is a checkpoint; module:callable is a function."""
    return Path(source).exists() or "/" in source or not re.fullmatch(r"[\w.]+(:\w*)?", source)


def _export_checkpoint(source: str, folder: Path, options: dict[str, Any]) -> None:
    from onnx_moe.export.checkpoint import CheckpointOptions, export_checkpoint

    console = Console()
    with CheckpointProgress(console) as progress:
        report = export_checkpoint(source, folder, CheckpointOptions(**options), progress)
    _print_layers(console, str(report.folder), report.format, report.layers)
    if report.layouts:
        console.print(f"Kept as they are: {', '.join(report.layouts)}.")
    if report.resumed_bytes:
        console.print(f"{megabytes(report.resumed_bytes)} were there from an interrupted export.")
    console.print(f"{megabytes(report.source_bytes)} became {megabytes(report.written_bytes)}.")
    _print_notes(console, report.notes)


def _export_module(source: str, output: Path, options: dict[str, Any]) -> None:
    from onnx_moe.export import export as export_module  # Torch takes seconds to import

    console = Console()
    module, example_inputs = _call(source)
    with console.status("starting") as status:
        report = export_module(module, example_inputs, output, progress=status.update, **options)
    _print_layers(console, str(report.path), report.format, report.layers)
    console.print(f"{megabytes(report.module_bytes)} became {megabytes(report.model_bytes)}.")
    _print_notes(console, report.notes)


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False, soft_wrap=True)


def _print_layers(console: Console, path: str, format: str, layers: tuple[ExportedLayer, ...]) -> None:
    table = Table(title=f"{path}: {len(layers)} MoE layers in {format}")
    for heading in ("layer", "experts", "top-k", "shared", "size", "router"):
        table.add_column(heading)
    for layer in layers:
        table.add_row(
            layer.path or "(module)",
            str(layer.num_experts),
            str(layer.top_k),
            str(layer.shared_experts),
            f"{layer.hidden_size} × {layer.intermediate_size}",
            layer.router,
        )
    console.print(table)


def _call(source: str) -> tuple[Any, Any]:
    """What the function named "module:callable" returns."""
    module_name, separator, name = source.partition(":")
    if not separator or not name:
        raise ExportError(
            f"{source!r} names neither a checkpoint's folder nor a function: give a folder, or write module:callable, "
            "such as my_model:build."
        )
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
