"""Measuring all implementations of a block, interleaved in one process."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.ggml import ggml
from bench.implementations import (
    Implementation,
    PluginKind,
    Unsupported,
    is_ours,
    plugin,
    qmoe_fp4,
    qmoe_int4,
    random_weights,
    torch_reference,
    weights_file,
)
from bench.machine import Limits, Machine
from bench.shapes import Shape, distinct_experts, draw_calls, every_expert
from onnx_moe.demo.timing import median_seconds

PEERS = ("qmoe-fp4", "qmoe-nvfp4", "qmoe-int4", "torch")
#: Rounds of a measurement, at the most and at the least, and calls of a burst: fewer where all implementations
#: together take long. Those of seconds come one by one: the threads of the one before hardly matter.
_ROUNDS, _LEAST_ROUNDS, _BURST, _BUDGET = 31, 3, 4, 12.0
#: A peer of whose calls one would take longer, in seconds, is left out from there on.
_LONGEST_CALL = 60.0


@dataclass(frozen=True)
class Result:
    """Median seconds of a call by implementation, and how much of the machine's limit each reaches.

    share: of reading the experts that a call reaches at the speed of a plain loop that takes its turn with the
    implementations and reads as much, or of its operations at the rate
    of the fastest instructions for the level (multiply-adds or three products of bfloat16 tiles at level 0, two such
    products or two int8 dot products at level 2, one at level 4), whichever takes longer.
    """

    shape: Shape
    threads: int
    tokens: int
    seconds: dict[str, float]
    share: dict[str, float]
    limits: Limits


@dataclass(frozen=True)
class Peers:
    """Names among PEERS, where ggml is installed if it is to take part, and whether the plugin's GPU is."""

    names: tuple[str, ...]
    ggml: Path | None = None
    metal: bool = False


def measure(
    shape: Shape, threads: int, token_counts: tuple[int, ...], peers: Peers, progress: Callable[[str], None]
) -> tuple[list[Result], list[str]]:
    """Results by token count, and which peers were left out and why."""
    results = []
    with tempfile.TemporaryDirectory(prefix="onnx-moe-bench-") as folder:
        progress(f"{shape.name}, {threads} thread(s): making the blocks")
        implementations, left_out = _implementations(shape, threads, peers, Path(folder))
        machine = Machine(Path(folder) / weights_file("mxfp4"), threads)
        for implementation in implementations:
            progress(f"{shape.name}, {threads} thread(s): reading the experts of {implementation.name}")
            implementation.run(implementation.feed(every_expert(shape)))  # reads every page for the first time
        for tokens in token_counts:
            progress(f"{shape.name}, {threads} thread(s): {tokens} token(s)")
            for implementation in _too_slow(implementations, results, tokens):
                implementations.remove(implementation)
                took = f"a call of {results[-1].tokens} took {results[-1].seconds[implementation.name]:.1f} s"
                left_out.append(f"{shape.name}: {implementation.name} from {tokens} tokens on: {took}")
            results.append(_measure_tokens(shape, threads, tokens, implementations, machine))
    return results, left_out


def _too_slow(implementations: list[Implementation], results: list[Result], tokens: int) -> list[Implementation]:
    """Peers that would take longer than _LONGEST_CALL by what they took last."""
    if not results:
        return []
    growth = tokens / results[-1].tokens
    peers = [implementation for implementation in implementations if not is_ours(implementation.name)]
    return [peer for peer in peers if results[-1].seconds[peer.name] * growth > _LONGEST_CALL]


def _implementations(shape: Shape, threads: int, peers: Peers, folder: Path) -> tuple[list[Implementation], list[str]]:
    mxfp4, nvfp4 = random_weights(shape, "mxfp4"), random_weights(shape, "nvfp4")
    kinds = [PluginKind(0), PluginKind(2), PluginKind(4), PluginKind(0, "interleaved"), PluginKind(4, "interleaved")]
    if peers.metal:
        kinds += [PluginKind(0, device="metal", fused=fused) for fused in (False, True)]
    makers = [partial(plugin, shape, mxfp4, kind, threads, folder) for kind in kinds]
    nvfp4_kinds = [PluginKind(4), PluginKind(4, "interleaved")]
    if "qmoe-nvfp4" in peers.names:
        nvfp4_kinds += [PluginKind(0), PluginKind(0, "interleaved")]
    makers += [partial(plugin, shape, nvfp4, kind, threads, folder) for kind in nvfp4_kinds]
    if "qmoe-fp4" in peers.names:
        makers.append(partial(qmoe_fp4, shape, mxfp4, threads, folder))
    if "qmoe-nvfp4" in peers.names:
        makers.append(partial(qmoe_fp4, shape, nvfp4, threads, folder))
    if "qmoe-int4" in peers.names:
        makers += [partial(qmoe_int4, shape, *kind, threads, folder) for kind in ((32, 0), (32, 4), (128, 4))]
    if "torch" in peers.names:
        makers += [partial(torch_reference, shape, dtype, threads) for dtype in (torch.bfloat16, torch.float32)]
    if peers.ggml:
        makers.append(partial(ggml, shape, peers.ggml, threads))
    left_out: list[str] = []

    def make_or_leave_out(make: Callable[[], Implementation]) -> Implementation | None:
        try:
            return make()
        except Unsupported as error:
            left_out.append(f"{shape.name}: {error}")
            return None

    made = [make_or_leave_out(make) for make in makers]
    return [implementation for implementation in made if implementation is not None], left_out


def _rate(implementation: Implementation, limits: Limits) -> float:
    """Operations a second of the fastest instructions for an accuracy level (Result.share)."""
    limbs = {"level 4": 1, "level 2": 2}.get(implementation.name.rpartition(", ")[2], 3)
    return max(limits.fma, limits.tiles / limbs, limits.dot / limbs if limbs < 3 else 0.0)


def _measure_tokens(
    shape: Shape, threads: int, tokens: int, implementations: list[Implementation], machine: Machine
) -> Result:
    calls = draw_calls(shape, tokens, 8 if tokens <= 128 else 2)

    def turn(implementation: Implementation) -> Callable[[], object]:
        endless = itertools.cycle([implementation.feed(call) for call in calls])
        return lambda: implementation.run(next(endless))

    runs = {implementation.name: turn(implementation) for implementation in implementations}
    start = time.perf_counter()
    for run in runs.values():
        run()
    once = time.perf_counter() - start
    burst = _BURST if once < 1.0 else 2 if once < 4.0 else 1
    rounds = max(_LEAST_ROUNDS, min(_ROUNDS, round(_BUDGET / (once * burst))))
    bytes_read = {entry.name: distinct_experts(calls) * entry.expert_bytes for entry in implementations}
    read_loop = machine.read_loop(round(bytes_read[implementations[0].name]))
    seconds = median_seconds({**runs, "read loop": read_loop}, rounds, burst)
    del seconds["read loop"]  # with its threads' start; its own clock leaves that out
    limits = machine.limits(read_loop.rate)
    share = {}
    for implementation in implementations:
        rate = _rate(implementation, limits)  # 0 where bench/machine.cpp has no instructions for the machine
        arithmetic = shape.operations(tokens) / rate if rate else 0.0
        reading = bytes_read[implementation.name] / limits.read
        share[implementation.name] = max(reading, arithmetic) / seconds[implementation.name]
    return Result(shape, threads, tokens, seconds, share, limits)
