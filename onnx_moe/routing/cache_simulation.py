"""What a cache of experts would have done with a recorded routing: the plugin's own policies, replayed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe import _native
from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.trace import RoutingTrace

#: Names of the policies; Belady's knows the future and bounds the others.
POLICIES = tuple(_native.CACHE_POLICIES)


_NO_BYPASS = -1


@dataclass(frozen=True)
class CacheSetup:
    """A cache of `capacity` experts of all layers together, and how it chooses what to give up.

    policy: one of POLICIES. layer_floor: slots that each layer keeps against the others' needs. decay: of a use, for
    each later call of its layer (decayed-lfu). pinned: keys (layer · num_experts + expert) that go last; preloaded:
    keys that are there at the start. share: missing experts of one call that take slots, those that it chose last
    (None: all of them).
    """

    capacity: int
    policy: str = "lru"
    layer_floor: int = 0
    decay: float = 0.95
    pinned: Sequence[int] = ()
    preloaded: Sequence[int] = ()
    share: int | None = None


@dataclass(frozen=True)
class SlotDivision:
    """How the plugin divides slots of experts: least, the slots that it needs (a token's experts of all layers, and one
    to read into); of a cache of `slots`: capacity, layer_floor and share as in CacheSetup (None: all), and staging, for
    experts that pass it by.
    """

    least: int
    capacity: int
    layer_floor: int
    share: int | None
    staging: int

    @classmethod
    def of(cls, slots: int, num_layers: int, num_experts: int, top_k: int, prefetches: bool = False) -> SlotDivision:
        """Of `slots` slots; below `least` nothing can be divided, and the rest is 0."""
        counts = _native.SlotCounts()
        status = _native.library().onnx_moe_divide_slots(
            num_layers, num_experts, top_k, slots, prefetches, ctypes.byref(counts)
        )
        _native.check(status)
        share = None if counts.share == _NO_BYPASS else counts.share
        return cls(counts.least, counts.capacity, counts.layer_floor, share, counts.staging)


@dataclass(frozen=True)
class CacheResult:
    """Counts of a replay; a lookup is one distinct expert of one call.

    outcomes [len(trace.experts)]: 0 a miss, 1 a hit, 2 chosen before in the same call. evicted: the key that gave up
    its slot, or −1.
    """

    hits: int
    misses: int
    evictions: int
    bypassed: int
    outcomes: NDArray[np.uint8]
    evicted: NDArray[np.int64]

    @property
    def lookups(self) -> int:
        """Distinct experts of each call, summed."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """hits / lookups; 0 without lookups."""
        return self.hits / self.lookups if self.lookups else 0.0


def simulate_cache(trace: RoutingTrace, setup: CacheSetup) -> CacheResult:
    """Replays `trace`. Raises InvalidInputError for an unknown policy, OnnxMoeError for what the cache cannot do."""
    if setup.policy not in _native.CACHE_POLICIES:
        raise InvalidInputError(f"policy={setup.policy!r} is unknown: use one of {', '.join(POLICIES)}.")
    pinned, preloaded = (np.ascontiguousarray(keys, np.int64) for keys in (setup.pinned, setup.preloaded))
    native_setup = _native.CacheSetup(
        trace.num_layers,
        trace.num_experts,
        setup.capacity,
        setup.layer_floor,
        _NO_BYPASS if setup.share is None else setup.share,
        _native.CACHE_POLICIES[setup.policy],
        setup.decay,
        pinned.ctypes.data,
        pinned.size,
        preloaded.ctypes.data,
        preloaded.size,
    )
    columns = (
        np.ascontiguousarray(trace.layers, np.int32),
        np.ascontiguousarray(trace.offsets, np.int64),
        np.ascontiguousarray(trace.experts, np.int32),
    )
    native_trace = _native.RoutingTrace(trace.num_calls, *(column.ctypes.data for column in columns))
    outcomes: NDArray[Any] = np.empty(len(trace.experts), np.uint8)
    evicted: NDArray[Any] = np.empty(len(trace.experts), np.int64)
    counts = _native.CacheCounts()
    status = _native.library().onnx_moe_simulate_cache(
        ctypes.byref(native_setup),
        ctypes.byref(native_trace),
        ctypes.byref(counts),
        outcomes.ctypes.data,
        evicted.ctypes.data,
    )
    _native.check(status)
    return CacheResult(counts.hits, counts.misses, counts.evictions, counts.bypassed, outcomes, evicted)
