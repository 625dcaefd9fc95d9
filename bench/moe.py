"""MoE blocks of real models against their peers: python -m bench.moe --peers all."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Annotated

import onnxruntime
import typer
from rich.console import Console

from bench.measure import PEERS, Peers, Result, measure
from bench.page import processor, write_measured
from bench.report import chart, markdown, terminal_table
from bench.shapes import SHAPES
from onnx_moe import _native
from onnx_moe.errors import OnnxMoeError

_NAMES = ", ".join(SHAPES)


def _choose(option: str, text: str, known: list[str]) -> tuple[str, ...]:
    chosen = tuple(known) if text == "all" else tuple(part for part in text.split(",") if part != "none")
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is unknown: use all, or some of {', '.join(known)}", param_hint=option)
    return chosen


def _wants_metal(device: str) -> bool:
    if device == "cpu":
        return False
    if device != "metal":
        raise typer.BadParameter(f"{device!r} is unknown: use cpu or metal", param_hint="--device")
    try:
        _native.device()
    except OnnxMoeError as error:
        raise typer.BadParameter(f"no GPU to measure: {error}", param_hint="--device") from error
    return True


def main(
    peers: Annotated[str, typer.Option(help=f"all, none, or some of {', '.join(PEERS)}, with commas.")] = "all",
    shapes: Annotated[str, typer.Option(help=f"all, or some of {_NAMES}, with commas.")] = "GLM-4.7-Flash",
    tokens: Annotated[str, typer.Option(help="Token counts, with commas.")] = "1,2,4,8,16,64,128,512,2048",
    threads: Annotated[str, typer.Option(help="Thread counts, with commas.")] = "1,2",
    ggml: Annotated[Path | None, typer.Option(help="Folder that ggml is installed in, to measure it, too.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or metal to measure the GPU beside it.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Markdown file to write its measured part of.")] = None,
) -> None:
    """Measures the plugin and its peers, interleaved in this process, and the machine's own limits."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen_peers = Peers(_choose("--peers", peers, list(PEERS)), ggml, _wants_metal(device))
    token_counts = tuple(int(count) for count in tokens.split(","))
    results: list[Result] = []
    sections: list[str] = []
    for name in _choose("--shapes", shapes, list(SHAPES)):
        for count in (int(count) for count in threads.split(",")):
            with console.status("") as status:
                some, left_out = measure(SHAPES[name], count, token_counts, chosen_peers, status.update)
            results += some
            console.print(terminal_table(name, count, some))
            for reason in left_out:
                console.print(f"left out: {reason}")
            sections.append(markdown(name, count, some) + "".join(f"\nLeft out: {why}.\n" for why in left_out))
    if output is not None:
        picture = output.with_suffix(".png")
        chart(results, picture)
        write_measured(output, _page(sections, picture.name))
        console.print(f"wrote {output} and {picture}")


def _page(sections: list[str], picture: str) -> str:
    head = f"""## Measured on {date.today():%Y-%m-%d}

{processor()}, ONNX Runtime {onnxruntime.__version__}. Made by `python -m bench.moe`; medians in milliseconds a call
of one block, all implementations interleaved in one process, random routing drawn anew for each call. Bold: how many
times faster than the peer. Share of the limit: the time that reading the experts' bytes (by a plain loop over as many
bytes of the same file, which takes its turn with the implementations) or their arithmetic takes at the least, whichever
is longer, over the time measured.

![Tokens a second by tokens of a call]({picture})

"""
    return head + "\n".join(sections)


if __name__ == "__main__":
    typer.run(main)
