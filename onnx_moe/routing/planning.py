"""What a budget of memory buys: hit rate, tokens a second, which experts to pin, what more would bring."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.hit_rates import SHARES, HitRateCurves, hit_rate_curves, token_cycle
from onnx_moe.routing.trace import RoutingTrace

#: Hit rates for which the budget is told.
TARGETS = (0.8, 0.9, 0.95)

_UNITS = {"": 1, "B": 1} | {
    letter + suffix: base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGT", 1)
}


def parse_bytes(text: str, what: str) -> int:
    """Bytes of "16GiB", "500MB" or "123". Raises InvalidInputError that names `what`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B|)\s*", text)
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise InvalidInputError(f"{what} is {text!r}: use a number of bytes, such as 16GiB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_bandwidth(text: str) -> float:
    """Bytes a second of "2GB/s". Raises InvalidInputError."""
    number, slash, second = text.strip().rpartition("/")
    if slash and second != "s":
        raise InvalidInputError(f"disk bandwidth is {text!r}: use bytes a second, such as 2GB/s.")
    return float(parse_bytes(number if slash else text, "disk bandwidth"))


@dataclass(frozen=True)
class Machine:
    """Where a model is to run. memory_bytes: for experts alone. disk_bandwidth: bytes a second of reads as large as an
    expert. compute_seconds: of a token when all experts are there (0: counts reading alone).
    """

    memory_bytes: int
    disk_bandwidth: float
    compute_seconds: float = 0.0


@dataclass(frozen=True)
class Operation:
    """What a cache of a size does. miss_bytes and seconds are a token's: computing, then reading, nothing overlapped,
    which is the safe side.
    """

    capacity: int
    bytes: int
    hit_rate: float
    miss_bytes: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """1 / seconds; infinite where nothing is read and computing is not counted."""
        return 1 / self.seconds if self.seconds else math.inf


@dataclass(frozen=True)
class Plan:
    """The answer. policies: of a budget, by policy. targets: hit rate → the least cache of `policy` that reaches it, or
    None. pins: keys (layer · num_experts + expert) of the experts that are used most, as many as fit, best first;
    pinned alone they hit what policies["static"] says.
    """

    policy: str
    expert_bytes: int
    bank_bytes: int
    cycle_bytes: int
    policies: dict[str, Operation]
    targets: dict[float, Operation | None]
    pins: NDArray[np.int64]
    curves: HitRateCurves


def plan(
    trace: RoutingTrace,
    expert_bytes: int,
    machine: Machine,
    *,
    policy: str = "decayed-lfu",
    progress: Callable[[float], None] | None = None,
) -> Plan:
    """What `machine` can do with the routing of `trace`.

    Raises InvalidInputError, with the number that is needed, where the memory is below what one token uses on its way
    through all layers, and one slot to read into.
    """
    bank = trace.num_layers * trace.num_experts
    cycle = token_cycle(trace)
    capacity = min(machine.memory_bytes // expert_bytes, bank)
    needed = (cycle + 1) * expert_bytes
    if capacity < min(cycle + 1, bank):
        raise InvalidInputError(
            f"memory is {machine.memory_bytes} bytes, which holds {capacity} experts of {expert_bytes}, but a token "
            f"uses {cycle} on its way through {trace.num_layers} layers: give at least {needed} bytes "
            f"({needed / 2**30:.2f} GiB)."
        )
    shares = sorted({*SHARES, capacity / bank})
    curves = hit_rate_curves(trace, shares, progress)
    # top_k a layer for one sequence, fewer where the sequences of a batch share experts.
    lookups = curves.lookups / max(curves.tokens - curves.warmup_tokens, 1)

    def operation(name: str, size: int) -> Operation:
        curve = curves.curve(name)
        rate = float(np.interp(size, curve.capacity, curve.hit_rate))
        miss_bytes = (1 - rate) * lookups * expert_bytes
        seconds = machine.compute_seconds + miss_bytes / machine.disk_bandwidth
        return Operation(size, size * expert_bytes, rate, miss_bytes, seconds)

    least = {target: curves.curve(policy).least_capacity(target) for target in TARGETS}
    return Plan(
        policy,
        expert_bytes,
        bank * expert_bytes,
        cycle * expert_bytes,
        {curve.policy: operation(curve.policy, capacity) for curve in curves.curves},
        {target: None if size is None else operation(policy, size) for target, size in least.items()},
        most_used(trace, capacity),
        curves,
    )


def most_used(trace: RoutingTrace, capacity: int) -> NDArray[np.int64]:
    """Keys of the experts that the trace uses most, best first, of those that it uses."""
    keys = np.repeat(trace.layers.astype(np.int64), np.diff(trace.offsets)) * trace.num_experts + trace.experts
    uses = np.bincount(keys, minlength=trace.num_layers * trace.num_experts)
    order = np.argsort(-uses, kind="stable")[:capacity]
    chosen: NDArray[Any] = order[uses[order] > 0]
    return chosen.astype(np.int64)
