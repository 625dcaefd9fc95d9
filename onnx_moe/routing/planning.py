"""What a budget of memory buys: hit rate, tokens a second, which experts to pin, what more would bring."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.cache_simulation import SlotDivision
from onnx_moe.routing.hit_rates import SHARES, HitRateCurves, hit_rate_curves
from onnx_moe.routing.trace import RoutingTrace

#: Hit rates for which the budget is told.
TARGETS = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Machine:
    """Where a model is to run. memory_bytes: for experts alone. disk_bandwidth: bytes a second of reads as large as an
    expert. compute_seconds: of a token when all experts are there (0: counts reading alone).
    """

    memory_bytes: int
    disk_bandwidth: float
    compute_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("memory_bytes", self.memory_bytes), ("disk_bandwidth", self.disk_bandwidth)):
            if not (math.isfinite(value) and value >= 1):
                raise InvalidInputError(f"{name} is {value}, but must be at least 1.")
        if not (math.isfinite(self.compute_seconds) and self.compute_seconds >= 0):
            raise InvalidInputError(f"compute_seconds is {self.compute_seconds}, but must be at least 0.")


@dataclass(frozen=True)
class Operation:
    """What memory for `capacity` experts does, divided as the plugin does. miss_bytes and seconds are a token's:
    computing, then reading, nothing overlapped, which is the safe side.
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
    None. least_bytes: below that the plugin refuses. pins: keys (layer · num_experts + expert) of the experts that the
    whole trace uses most, as many as fit, best first. policies["static"] is what such a choice is worth on tokens that
    it was not made from: that of the first quarter, on the rest.
    """

    policy: str
    expert_bytes: int
    bank_bytes: int
    cycle_bytes: int
    least_bytes: int
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

    Raises InvalidInputError, with the number that is needed, where the memory is below what the plugin's cache needs:
    slots for what one token uses on its way through all layers, and one to read into.
    """
    if expert_bytes < 1:
        raise InvalidInputError(f"expert_bytes is {expert_bytes}, but must be at least 1.")
    layers, experts = max(len(np.unique(trace.layers)), 1), trace.num_experts
    bank = layers * experts
    capacity = min(machine.memory_bytes // expert_bytes, bank)
    least = SlotDivision.of(capacity, layers, experts, trace.top_k).least
    if capacity < least:
        raise InvalidInputError(
            f"memory is {machine.memory_bytes} bytes, which holds {capacity} experts of {expert_bytes}, but a token "
            f"uses {layers * trace.top_k} on its way through {layers} layers, and one slot is for reading: give at "
            f"least {least * expert_bytes} bytes ({least * expert_bytes / 2**30:.2f} GiB)."
        )
    curves = hit_rate_curves(trace, sorted({*SHARES, capacity / bank}), progress)

    def operation(name: str, size: int) -> Operation:
        curve = curves.curve(name)
        rate = float(np.interp(size, curve.capacity, curve.hit_rate))
        miss_bytes = (1 - rate) * curves.lookups_per_token * expert_bytes
        seconds = machine.compute_seconds + miss_bytes / machine.disk_bandwidth
        return Operation(size, size * expert_bytes, rate, miss_bytes, seconds)

    sizes = {target: curves.curve(policy).least_capacity(target) for target in TARGETS}
    return Plan(
        policy,
        expert_bytes,
        bank * expert_bytes,
        curves.cycle * expert_bytes,
        least * expert_bytes,
        {curve.policy: operation(curve.policy, capacity) for curve in curves.curves},
        {target: None if size is None else operation(policy, size) for target, size in sizes.items()},
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
