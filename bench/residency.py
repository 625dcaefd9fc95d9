"""Models larger than memory: python -m bench.residency.

Writes a model of random FP4 experts to the disk, and runs one token after the other through it: hidden states that
change little from token to token, routers that prefer some experts (Zipf). Each budget and policy gets a session of its
own; the page cache is left out (direct reads), so that a miss is a read from the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import typer
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import track
from rich.table import Table

import onnx_moe
from onnx_moe.cache import engine
from onnx_moe.operators import DOMAIN, VERSION

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 2048, 768, 64, 4
READERS = 4
GIB = 1 << 30
#: Rows and columns of an expert's projections, its codes and scales.
PARTS = {
    f"{projection}.{part}": (rows, columns // divisor)
    for projection, rows, columns in (("gate_up", 2 * INTERMEDIATE, HIDDEN), ("down", HIDDEN, INTERMEDIATE))
    for part, divisor in (("weights", 2), ("scales", 32))
}
EXPERT_BYTES = sum(rows * columns for rows, columns in PARTS.values())


@dataclass(frozen=True)
class Measurement:
    """One session's decoding; resident_growth: most bytes of anonymous memory above those before it."""

    tokens_per_second: float
    statistics: dict[str, Any]
    tokens: int
    resident_growth: int


def main(
    gib: Annotated[float, typer.Option(help="Size of all experts.")] = 8,
    budgets: Annotated[str, typer.Option(help="Budgets, with commas, as onnx_moe.cache_bytes.")] = "10%,25%,50%,100%",
    prefetch: Annotated[str, typer.Option(help="Signals for reading ahead, with commas.")] = "off,next-gate",
    policies: Annotated[str, typer.Option(help="Policies, with commas.")] = "lru,decayed-lfu",
    tokens: Annotated[int, typer.Option(help="Tokens that are timed, after as many that warm the cache.")] = 48,
    threads: Annotated[int, typer.Option(help="Threads that compute.")] = 2,
    mapped: Annotated[bool, typer.Option(help="Also with all experts mapped: slow beyond the memory.")] = True,
    folder: Annotated[
        Path | None, typer.Option(help="Where the model is, or goes to stay (default: not kept).")
    ] = None,
) -> None:
    """Measures tokens a second, hits, bytes and stalls by budget and policy."""
    layers = max(1, round(gib * GIB / (EXPERTS * EXPERT_BYTES)))
    with contextlib.ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx-moe-bench-")))
        path = home / f"{layers}_layers.onnx"
        if not path.exists():
            _write_model(path, layers)
        bandwidth = _disk_bandwidth(path.with_suffix(".data"))
        console = Console(width=140)
        table = Table(title=f"{tokens} tokens, {threads} threads")
        for heading in (
            "budget",
            "policy",
            "prefetch",
            "disk GB/s",
            "tokens/s",
            "hits",
            "ready",
            "recall",
            "MB/token",
            "stall ms/token",
            "decided us/layer",
            "of the disk's limit",
            "memory - budget, MB",
        ):
            table.add_column(heading, justify="right")
        settings = itertools.product(*(names.split(",") for names in (budgets, policies, prefetch)))
        for budget, policy, signal in settings:
            entries = {"residency": "pool", "cache_bytes": budget, "cache_policy": policy, "direct_io": "on"}
            entries["prefetch"] = signal
            measured = _decode(path, entries, tokens, threads)
            bandwidth = max(_disk_bandwidth(path.with_suffix(".data")), bandwidth)
            table.add_row(budget, policy, signal, f"{bandwidth / 1e9:.2f}", *_row(measured, bandwidth))
        if mapped:
            whole = _decode(path, {"residency": "mapped"}, tokens, threads)
            table.add_row("mapped", "", "", "", f"{whole.tokens_per_second:.2f}", *[""] * 8)
        console.print(table)
        console.print(
            f"{layers} layers x {EXPERTS} experts of {EXPERT_BYTES / 1e6:.2f} MB, top-{TOP_K}; the disk gives the best "
            f"that {READERS} direct readers of whole experts have had so far."
        )


def _row(measured: Measurement, bandwidth: float) -> Iterator[str]:
    of = measured.statistics
    lookups = max(of["lookups"], 1)
    bytes_per_token = of["bytes_read"] / measured.tokens
    limit = bandwidth / bytes_per_token if bytes_per_token else float("inf")
    yield f"{measured.tokens_per_second:.2f}"
    yield f"{100 * of['hits'] / lookups:.1f} %"
    ahead = of["prefetch"]
    yield f"{100 * (of['hits'] + ahead['timely']) / lookups:.1f} %"
    yield f"{100 * ahead['correct'] / ahead['used']:.0f} %" if ahead["used"] else ""
    yield f"{bytes_per_token / 1e6:.1f}"
    yield f"{of['stall_ns'] / 1e6 / measured.tokens:.1f}"
    yield f"{of['bookkeeping_ns'] / 1e3 / max(of['calls'], 1):.1f}"
    yield f"{100 * measured.tokens_per_second / limit:.0f} %"
    yield f"{(measured.resident_growth - of['budget_bytes']) / 1e6:+.0f}"


def _write_model(path: Path, layers: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    with open(path.with_suffix(".data"), "wb") as data:
        for layer in track(range(layers), description="writing experts"):
            tensors += [numpy_helper.from_array(array, name) for name, array in _gate(layer, random).items()]
            tensors += [_write_part(data, f"{layer}.{part}", *size, random) for part, size in PARTS.items()]
            nodes += _nodes(layer, last=layer + 1 == layers)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "stack",
        [value("0.in", TensorProto.FLOAT, ["tokens", HIDDEN])],
        [value(f"{layers}.in", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _gate(layer: int, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    popularity = -1.0 * np.log(1 + random.permutation(EXPERTS))
    return {
        f"{layer}.gate": (random.standard_normal((EXPERTS, HIDDEN)) * 1.5).astype(np.float32),
        f"{layer}.gate_bias": popularity.astype(np.float32),
    }


def _write_part(data: Any, name: str, rows: int, columns: int, random: np.random.Generator) -> onnx.TensorProto:
    data.seek(-(-data.tell() // mmap.PAGESIZE) * mmap.PAGESIZE)
    size = EXPERTS * rows * columns
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[EXPERTS, rows, columns])
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", Path(data.name).name), ("offset", data.tell()), ("length", size)):
        tensor.external_data.add(key=key, value=str(entry))
    data.write(np.full(size, 119, np.uint8) if name.endswith("scales") else random.bytes(size))
    return tensor


def _nodes(layer: int, last: bool) -> list[onnx.NodeProto]:
    parts = [f"{layer}.{part}" for part in PARTS]
    inputs = [f"{layer}.in", f"{layer}.gate", f"{layer}.gate_bias", "", *parts[:2], "", "", *parts[2:]]
    if not last:
        inputs += ["", "", f"{layer + 1}.gate"]
    block = helper.make_node(
        "MoEBlockFP4",
        inputs,
        [f"{layer}.y"],
        name=f"layer{layer}",
        domain=DOMAIN,
        top_k=TOP_K,
        gated=1,
        activation="silu",
        accuracy_level=4,
    )
    residual = helper.make_node("Add", [f"{layer}.in", f"{layer}.y"], [f"{layer}.sum"])
    return [block, residual, helper.make_node("LpNormalization", [f"{layer}.sum"], [f"{layer + 1}.in"], axis=-1)]


def _disk_bandwidth(path: Path, seconds: float = 4) -> float:
    size = EXPERT_BYTES // mmap.PAGESIZE * mmap.PAGESIZE
    positions = path.stat().st_size // size
    deadline = time.perf_counter() + seconds

    def read(seed: int) -> int:
        random = np.random.default_rng(seed)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        total = 0
        with mmap.mmap(-1, size) as buffer:
            while time.perf_counter() < deadline:
                total += os.preadv(descriptor, [buffer], int(random.integers(positions)) * size)
        os.close(descriptor)
        return total

    start = time.perf_counter()
    with ThreadPoolExecutor(READERS) as readers:
        total = sum(readers.map(read, range(READERS)))
    return total / (time.perf_counter() - start)


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _decode(path: Path, entries: dict[str, str], tokens: int, threads: int) -> Measurement:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for name, value in entries.items():
        options.add_session_config_entry(f"onnx_moe.{name}", value)
    before = _anonymous_bytes()
    session = onnx_moe.InferenceSession(path, options)
    random = np.random.default_rng(1)
    hidden = random.standard_normal((1, HIDDEN))

    peak = 0

    def decode() -> None:
        nonlocal hidden, peak
        for _ in range(tokens):
            hidden = 0.8 * hidden + 0.6 * random.standard_normal((1, HIDDEN))
            unit = (hidden / np.linalg.norm(hidden)).astype(np.float32)
            session.run(None, {"0.in": unit})
            peak = max(peak, _anonymous_bytes())

    decode()
    warm = engine(session).statistics()
    start = time.perf_counter()
    decode()
    seconds = time.perf_counter() - start
    after = engine(session).statistics()
    counters = {name: after[name] - warm[name] if _is_counter(name) else after[name] for name in after}
    ahead, before_ahead = after.get("prefetch", {}), warm.get("prefetch", {})
    counters["prefetch"] = {name: ahead.get(name, 0) - before_ahead.get(name, 0) for name in _AHEAD}
    return Measurement(tokens / seconds, counters, tokens, peak - before)


#: Counters of reading ahead.
_AHEAD = ("timely", "late", "wasted", "correct", "used")


def _is_counter(name: str) -> bool:
    return name in {"calls", "lookups", "hits", "misses", "bytes_read", "stall_ns", "bookkeeping_ns", "evictions"}


if __name__ == "__main__":
    typer.run(main)
