"""What the cache costs where every expert is in it: python -m bench.residency.overhead.

Two sessions of one model take turns: experts mapped, and in a pool that holds all of them, read before the first token.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import typer
from rich.console import Console

import onnx_moe
from bench.residency.model import SHAPES, draw_tokens, write_model
from onnx_moe.cache import engine

SHAPE = SHAPES["qwen3-30b-a3b"]


def main(
    layers: Annotated[int, typer.Option(help="Layers of the model: 322 MB each, and as much again in the pool.")] = 4,
    rounds: Annotated[int, typer.Option(help="Turns of each session.")] = 40,
    tokens: Annotated[int, typer.Option(help="Tokens of a turn.")] = 10,
    threads: Annotated[int, typer.Option(help="Threads that compute.")] = 1,
) -> None:
    """Compares tokens a second of pool and mapped, turn by turn, and tells the cache's own time."""
    with tempfile.TemporaryDirectory(prefix="onnx-moe-bench-") as folder:
        path, counters = Path(folder) / "model.onnx", Path(folder) / "counters.txt"
        write_model(path, SHAPE, layers)
        keys = itertools.product(range(layers), range(SHAPE.experts))
        lines = [f'"main" {layer} MoEBlockFP4 {expert} 1' for layer, expert in keys]
        counters.write_text("\n".join(["moe_expert_state 1", *lines, ""]))
        pool = {"residency": "pool", "cache_bytes": "100%", "counters": str(counters)}
        sessions = {"mapped": _session(path, threads, residency="mapped"), "pool": _session(path, threads, **pool)}
        feeds = list(itertools.islice(draw_tokens(layers, SHAPE.hidden, seed=1), tokens))
        _wait_for(sessions["pool"], feeds[0])
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        before = engine(sessions["pool"]).statistics()
        for _ in range(rounds):
            for name, session in sessions.items():
                start = time.perf_counter()
                for token in feeds:
                    session.run(None, token)
                seconds[name].append((time.perf_counter() - start) / tokens / layers)
        after = engine(sessions["pool"]).statistics()
    ratios = [pooled / mapped for pooled, mapped in zip(seconds["pool"], seconds["mapped"], strict=True)]
    own = (after["bookkeeping_ns"] - before["bookkeeping_ns"]) / (after["calls"] - before["calls"]) / 1e3
    console = Console()
    for name, times in seconds.items():
        console.print(f"{name}: {1e6 * statistics.median(times):.0f} us a layer, at least {1e6 * min(times):.0f}")
    console.print(
        f"pool / mapped, median of {rounds} turns: {statistics.median(ratios):.3f}; of the least: "
        f"{min(seconds['pool']) / min(seconds['mapped']):.3f}"
    )
    hits = after["hits"] - before["hits"]
    console.print(f"bookkeeping: {own:.1f} us a layer, mean; {hits} hits, {after['misses'] - before['misses']} misses")


def _session(path: Path, threads: int, **entries: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for name, value in entries.items():
        options.add_session_config_entry(f"onnx_moe.{name}", value)
    return onnx_moe.InferenceSession(path, options)


def _wait_for(session: onnxruntime.InferenceSession, token: dict[str, Any]) -> None:
    """Until the warm start's reads are over, which run behind everything else."""
    session.run(None, token)
    while True:
        before = engine(session).statistics()["stall_ns"]
        for _ in range(20):
            session.run(None, token)
        if engine(session).statistics()["stall_ns"] == before:
            time.sleep(2)
            return


if __name__ == "__main__":
    typer.run(main)
