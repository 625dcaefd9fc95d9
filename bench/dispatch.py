"""Grouping tokens by expert: the plugin's counting sort against a stable sort of Torch's: python -m bench.dispatch."""

from __future__ import annotations

import torch
import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.demo.timing import median_seconds
from onnx_moe.dispatch import group_tokens_by_expert
from onnx_moe.dispatch.grouping import group_on_device


def main() -> None:
    """Measures both, interleaved in this process, at the sizes of decoding and of prompts."""
    torch.set_num_threads(1)
    table = Table(title="grouping [T, k] ids of 128 experts: microseconds")
    for heading in ("T × k", "counting sort (plugin)", "argsort (Torch)", "times faster"):
        table.add_column(heading, justify="right")
    for tokens, top_k in ((1, 8), (64, 8), (512, 8), (4096, 8)):
        ids = torch.randint(0, 128, (tokens, top_k), dtype=torch.int32)
        seconds = median_seconds(
            {
                "ours": lambda ids=ids: group_tokens_by_expert(ids, 128),
                "torch": lambda ids=ids: group_on_device(ids, 128),
            },
            rounds=15,
            burst=9,
        )
        ours, theirs = seconds["ours"], seconds["torch"]
        table.add_row(f"{tokens} × {top_k}", f"{1e6 * ours:.0f}", f"{1e6 * theirs:.0f}", f"{theirs / ours:.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
