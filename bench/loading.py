"""What a session of a block costs beside its weights: python -m bench.loading.

Prints, for a block of GLM-4.7-Flash, the time until its session is made and how much memory becomes resident after
calls of 512 tokens, beyond the weights that are mapped. Each session is a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import typer

import onnx_moe
from bench.implementations import PluginKind, plugin, random_weights, session_options
from bench.shapes import SHAPES

_TOKENS, _CALLS = 512, 5
_KINDS = (PluginKind(0), PluginKind(4), PluginKind(0, "interleaved"), PluginKind(4, "interleaved"))


def resident() -> dict[str, int]:
    """Bytes of this process's memory by kind: RssAnon (its own) and RssFile (mapped files')."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {kind: int(fields[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssFile")}


def measure_session(model: Path) -> None:
    """Prints seconds of loading and the growth of resident memory as JSON: what the process of a session does."""
    shape = SHAPES["GLM-4.7-Flash"]
    options = session_options(threads=2)
    onnx_moe.register(options)
    random = np.random.default_rng(0)
    x = random.standard_normal((_TOKENS, shape.hidden_size), dtype=np.float32)
    ids = random.integers(0, shape.num_experts, (_TOKENS, shape.top_k), dtype=np.int32)
    feed = {"x": x, "ids": ids, "weights": np.full(ids.shape, 1 / shape.top_k, np.float32)}
    before, start = resident(), time.perf_counter()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    for _ in range(_CALLS):
        session.run(None, feed)
    after = resident()
    print(json.dumps({"seconds": seconds, **{kind: after[kind] - before[kind] for kind in after}}))


def main(
    model: Annotated[Path | None, typer.Argument(help="Measure this block's session in this process.")] = None,
) -> None:
    """Time and memory of a session beside its weights, for each level and layout."""
    if model is not None:
        return measure_session(model)
    shape = SHAPES["GLM-4.7-Flash"]
    weights = random_weights(shape, "mxfp4")
    nbytes = sum(projection.nbytes for projection in weights)
    print(f"weights: {nbytes / 1e6:.0f} MB; calls of {_TOKENS} tokens, 2 threads")
    for kind in _KINDS:
        with tempfile.TemporaryDirectory(prefix="onnx-moe-bench-") as folder:
            name = plugin(shape, weights, kind, 2, Path(folder)).name
            (path,) = Path(folder).glob("*.onnx")
            runs = [json.loads(_own_process(path)) for _ in range(5)]
        seconds = statistics.median(run["seconds"] for run in runs)
        own, mapped = (max(run[field] for run in runs) for field in ("RssAnon", "RssFile"))
        print(
            f"{name}: loads in {1e3 * seconds:.1f} ms; resident {(own + mapped - nbytes) / 1e6:+.0f} MB beyond the "
            f"weights ({own / 1e6:.0f} MB of its own: activations, products, threads)"
        )
    return None


def _own_process(model: Path) -> str:
    command = [sys.executable, "-m", "bench.loading", str(model)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    typer.run(main)
