"""`onnx-moe doctor`: what is installed and what this machine can run."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table


def doctor() -> None:
    """Show versions, processor and kernels, run each kernel once, and say what to do about problems."""
    from onnx_moe.diagnosis import diagnose  # onnxruntime takes a moment to import

    diagnosis = diagnose()
    console = Console()
    table = Table(show_header=False, box=None)
    for name, value in diagnosis.facts:
        table.add_row(f"[bold]{name}[/]", value)
    for name, state in diagnosis.kernels:
        table.add_row(f"[bold]kernel {name}[/]", state)
    console.print(table)
    if not diagnosis.problems:
        console.print("[green]No problems.[/]")
        return
    for problem in diagnosis.problems:
        console.print(f"[red]problem:[/] {problem}", highlight=False)
    raise typer.Exit(1)
