"""The `onnx-moe` command."""

from __future__ import annotations

import logging

import typer
from rich.console import Console
from rich.logging import RichHandler

from onnx_moe.cli.accuracy import accuracy
from onnx_moe.cli.bench import bench
from onnx_moe.cli.convert import convert
from onnx_moe.cli.demo import demo
from onnx_moe.cli.doctor import doctor
from onnx_moe.cli.export import export
from onnx_moe.cli.generate import generate
from onnx_moe.cli.inspect import inspect
from onnx_moe.cli.plan import plan
from onnx_moe.cli.profile import profile
from onnx_moe.cli.simulate import simulate
from onnx_moe.errors import OnnxMoeError

app = typer.Typer(
    help="Torch mixture-of-experts models in ONNX Runtime: FP4 experts, exact routing, small files.",
    no_args_is_help=True,
    add_completion=False,
)
app.command()(demo)
app.command()(export)
app.command()(convert)
app.command()(generate)
app.command()(inspect)
app.command()(doctor)
app.command()(accuracy)
app.command()(profile)
app.command()(plan)
app.command()(simulate)
app.add_typer(bench, name="bench")


@app.callback()
def _options(verbose: bool = typer.Option(False, "--verbose", "-v", help="Say what is decided, and why.")) -> None:
    logger = logging.getLogger("onnx_moe")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logger.handlers = [RichHandler(console=Console(stderr=True), show_time=False, show_path=False)]


def main() -> None:
    """Entry point: an OnnxMoeError is one line for the user, not a traceback."""
    try:
        app()
    except OnnxMoeError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
