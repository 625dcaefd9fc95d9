"""`onnx-moe demo`: the main job on real input."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from onnx_moe.cli.text import megabytes, milliseconds
from onnx_moe.errors import OnnxMoeError

if TYPE_CHECKING:
    from onnx_moe.demo.block import BlockResult
    from onnx_moe.demo.text import TextResult


def demo() -> None:
    """Export a trained MoE model and a GLM-4.7-Flash block, run both, and compare text, error, size and speed."""
    try:
        from onnx_moe.demo.block import run_block
        from onnx_moe.demo.text import run_text
    except ImportError as error:
        raise OnnxMoeError(f"the demo needs Torch and transformers ({error}): pip install 'onnx-moe[torch]'") from error

    console = Console()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="onnx-moe-demo-") as folder, console.status("") as status:

        def progress(line: str) -> None:
            status.update(f"{line} …")
            console.print(f"[dim]{time.perf_counter() - start:5.1f} s  {line}[/]", highlight=False)

        text = run_text(Path(folder), progress)
        block = run_block(Path(folder), progress)
    _show_text(console, text)
    _show_block(console, block)
    console.print(f"[dim]{time.perf_counter() - start:.0f} s in all.[/]", highlight=False)


def _show_text(console: Console, result: TextResult) -> None:
    body = Text(result.prompt, style="bold")
    body.append(result.text, style="not bold")
    console.print(Panel(body, title="A trained model, exported whole, writes"))
    console.print(
        f"{result.parameters / 1e6:.1f} M parameters, {megabytes(result.module_bytes)} in bfloat16, "
        f"{megabytes(result.model_bytes)} as ONNX. Greedy text: {result.agreeing_tokens} of {result.new_tokens} tokens "
        "are those of Torch with the same FP4 weights.",
        highlight=False,
    )
    console.print(
        f"Perplexity on held-out text: Torch bfloat16 {result.perplexity_torch:.3f}, plugin "
        f"{result.perplexity_plugin:.3f}, stock ONNX Runtime on the portable bodies {result.perplexity_stock:.3f}.",
        highlight=False,
    )


def _show_block(console: Console, result: BlockResult) -> None:
    nodes = ", ".join(f"{count} {name}" for name, count in result.nodes.items())
    table = Table(
        title="One MoE block of GLM-4.7-Flash (64 experts, top-4, 2048 × 1536, one shared)", caption=f"Nodes: {nodes}"
    )
    table.add_column("", no_wrap=True)
    for heading in ("size", "error", "error with FP4", "a token, 1 at a time", "a token, 128 at a time"):
        table.add_column(heading, justify="right")
    for row in result.implementations:
        table.add_row(
            row.name,
            megabytes(row.nbytes),
            f"{row.arithmetic_error:.1e}",
            f"{row.total_error:.3f}",
            milliseconds(row.seconds[1]),
            milliseconds(row.seconds[128] / 128),
        )
    console.print(table)
    console.print(
        "Errors are relative to a float64 evaluation of the weights that each computes with, and of the original ones. "
        "The block's weights are random. QMoE has no sigmoid router and no shared experts: it gets the routing made, "
        "and the shared expert as one that every token chooses.",
        highlight=False,
    )
