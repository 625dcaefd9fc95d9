"""`onnx-moe convert`: MoE nodes of ONNX Runtime's domain to ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import onnx_ir as ir
import typer
from rich.console import Console

from onnx_moe.errors import InvalidModelError


def convert(
    source: Annotated[Path, typer.Argument(help="An .onnx model with com.microsoft.QMoE nodes in FP4, or MoE nodes.")],
    output: Annotated[Path, typer.Argument(help="The .onnx file to write; weights go to OUTPUT.data beside it.")],
    format: Annotated[str, typer.Option(help="Of MoE nodes, whose weights are floats: mxfp4 or nvfp4.")] = "mxfp4",
    scale: Annotated[str, typer.Option(help="Of theirs, as in export: mse, even, ceil, floor or rceil.")] = "mse",
    functions: Annotated[bool, typer.Option(help="Carry bodies that run without the plugin.")] = True,
) -> None:
    """Rewrite com.microsoft.QMoE nodes in FP4, with the same bytes, and MoE nodes, quantised, into onnx_moe's."""
    from onnx_moe.conversion import convert as convert_model
    from onnx_moe.export.finish import prepare_folder, save  # Torch takes seconds to import

    if not source.is_file():
        raise InvalidModelError(f"{source} is not a file: give the path of an .onnx model.")
    if output.suffix != ".onnx":
        raise InvalidModelError(f"{output} does not end in .onnx: give the file to write, such as model.onnx.")
    if output.resolve() == source.resolve():
        raise InvalidModelError(f"{output} is the source itself: give another file to write.")
    try:
        model = ir.load(source)
    except Exception as error:  # protobuf and onnx raise types of their own
        raise InvalidModelError(f"{source} is not an ONNX model: {error}") from error
    count = convert_model(model, format=format, scale=scale)
    prepare_folder(output)
    save(model, output, functions)
    Console().print(f"{count} {'node' if count == 1 else 'nodes'} converted: {output}")
