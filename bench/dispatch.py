"""Rows to the experts and back, the plugin's way against Torch's operators: python -m bench.dispatch.

Torch's are those of a dispatcher that sorts: argsort of the ids twice, indexing, a product, indexing and a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.demo.timing import median_seconds
from onnx_moe.dispatch import gather_for_experts, group_tokens_by_expert_full, scatter_expert_outputs

EXPERTS, TOP_K = 128, 8


def main(
    hidden: Annotated[int, typer.Option(help="Columns of the rows.")] = 2048,
    threads: Annotated[int, typer.Option(help="Of both.")] = 1,
) -> None:
    """Measures each step of both, interleaved in this process, at the sizes of decoding and of prompts."""
    torch.set_num_threads(threads)
    table = Table(title=f"{EXPERTS} experts, top-{TOP_K}, {hidden} columns, {threads} thread(s): microseconds")
    for heading in ("tokens", "dtype", "step", "plugin", "Torch", "times faster"):
        table.add_column(heading, justify="right")
    for tokens in (1, 64, 512, 4096):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for step, (ours, theirs) in _steps(tokens, hidden, dtype).items():
                if step == "group" and dtype != torch.float32:
                    continue
                rounds, burst = (15, 9) if tokens * hidden < 2**19 else (7, 3)
                seconds = median_seconds({"ours": ours, "theirs": theirs}, rounds, burst)
                name = "" if step == "group" else str(dtype).removeprefix("torch.")
                times = [f"{1e6 * seconds[who]:,.0f}" for who in ("ours", "theirs")]
                table.add_row(str(tokens), name, step, *times, f"{seconds['theirs'] / seconds['ours']:.1f}")
    Console().print(table)


def _steps(tokens: int, hidden: int, dtype: torch.dtype) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Of each step: the plugin's and Torch's."""
    ids = torch.randint(0, EXPERTS, (tokens, TOP_K), dtype=torch.int32)
    probs = torch.rand(tokens, TOP_K)
    x = torch.randn(tokens, hidden).to(dtype)
    y = torch.randn(tokens * TOP_K, hidden).to(dtype)
    info = group_tokens_by_expert_full(ids, EXPERTS)
    return {
        "group": (lambda: group_tokens_by_expert_full(ids, EXPERTS), lambda: _sorted(ids)),
        "gather": (lambda: gather_for_experts(x, info), lambda: x[info.sorted_token_indices]),
        "scatter": (lambda: scatter_expert_outputs(y, probs, info), lambda: _combined(y, probs.to(dtype), info)),
    }


def _sorted(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    flat = ids.reshape(-1).long()
    order = torch.argsort(flat * flat.numel() + torch.arange(flat.numel()))
    offsets = torch.zeros(EXPERTS + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(flat, minlength=EXPERTS).cumsum(0)
    return order // TOP_K, order % TOP_K, offsets, torch.argsort(order)


def _combined(y: torch.Tensor, probs: torch.Tensor, info: Any) -> torch.Tensor:
    weighted = y * probs[info.sorted_token_indices, info.sorted_expert_slots][:, None]
    return weighted[info.inverse_indices].reshape(info.num_tokens, TOP_K, -1).sum(1)


if __name__ == "__main__":
    typer.run(main)
