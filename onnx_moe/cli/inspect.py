"""`onnx-moe inspect`: a model's MoE nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.cli.text import megabytes
from onnx_moe.inspection import Inspection, inspect_model


def inspect(model: Annotated[Path, typer.Argument(help="An .onnx file.")]) -> None:
    """Show a model's MoE nodes: experts, top-k, format, bytes, and who would run them here."""
    inspection = inspect_model(model)
    console = Console()
    if not inspection.nodes:
        console.print(f"{model} holds no MoE nodes ({megabytes(inspection.nbytes)}).")
        return
    console.print(_table(inspection))
    experts = sum(node.nbytes for node in inspection.nodes)
    console.print(f"{megabytes(experts)} of {megabytes(inspection.nbytes)} are MoE weights.")
    console.print(f"Portable bodies: {'yes' if inspection.has_bodies else 'no'}. Run by: {inspection.runner}.")


def _table(inspection: Inspection) -> Table:
    table = Table(title=str(inspection.path))
    table.add_column("node", overflow="fold")
    table.add_column("operator")
    for heading in ("experts", "k", "shape", "format", "size"):
        table.add_column(heading, justify="right")
    for node in inspection.nodes:
        table.add_row(
            node.name,
            node.operator,
            "?" if node.num_experts is None else str(node.num_experts),
            "?" if node.top_k is None else str(node.top_k),
            node.shape,
            node.format or "",
            megabytes(node.nbytes),
        )
    return table
