"""Hit rates by size of cache: what a cache of experts would do with a recorded routing, policy by policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.cache_simulation import POLICIES, CacheSetup, SlotDivision, simulate_cache
from onnx_moe.routing.trace import DECODE, PREFILL, RoutingTrace

Array = NDArray[Any]

#: Shares of all experts at which caches are simulated, besides one token's cycle.
SHARES = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
#: The cache whose misses are shown: what the plugin does by default, with a quarter of the experts.
MISS_POLICY, MISS_SHARE = "decayed-lfu", 0.25
#: Share of the trace that fills the cache before hits are counted.
WARMUP = 0.25


@dataclass(frozen=True)
class HitRates:
    """Hit rates of a policy: of lookups (distinct experts of a call) after the warm-up, by capacity in slots [C], each
    for one expert.
    """

    policy: str
    capacity: Array
    hit_rate: Array

    def least_capacity(self, hit_rate: float) -> int | None:
        """The least capacity that reaches a hit rate, linear between those simulated; None where none does."""
        reached = np.flatnonzero(self.hit_rate >= hit_rate)
        if not reached.size:
            return None
        at = int(reached[0])
        if at == 0:
            return int(self.capacity[0])
        rates, capacities = self.hit_rate[at - 1 : at + 1], self.capacity[at - 1 : at + 1]
        # Less what rounding may add.
        return int(np.ceil(np.interp(hit_rate, rates, capacities) - 1e-9))


@dataclass(frozen=True)
class Misses:
    """Where a cache misses: counts [num_layers of the trace, E] of lookups after the warm-up, of `policy` with
    `capacity` slots.
    """

    policy: str
    capacity: int
    counts: Array


@dataclass(frozen=True)
class HitRateCurves:
    """The curves of a trace. num_layers: that were called; bank, cycle, least: experts of all of them, that a token
    uses on its way through them, and that the plugin's cache needs slots for. tokens: replayed, of which the first
    warmup_tokens only fill the cache; the others made so many lookups. rows: tokens of a step, a mean.
    """

    phase: int
    num_layers: int
    bank: int
    cycle: int
    least: int
    tokens: int
    warmup_tokens: int
    lookups: int
    rows: float
    curves: tuple[HitRates, ...]
    misses: Misses

    @property
    def lookups_per_token(self) -> float:
        """Distinct experts of a call, by token: top_k a layer for one sequence, fewer where those of a batch share."""
        return self.lookups / max(self.tokens - self.warmup_tokens, 1)

    def curve(self, policy: str) -> HitRates:
        """The curve of a policy; InvalidInputError for one that was not simulated."""
        for each in self.curves:
            if each.policy == policy:
                return each
        raise InvalidInputError(f"policy={policy!r} was not simulated: there are {[c.policy for c in self.curves]}.")


def decoding_calls(trace: RoutingTrace) -> tuple[RoutingTrace, int]:
    """The decoding calls and DECODE; where there are none, the prompts' tokens one at a time and PREFILL.

    A causal model routes a token alike in a prompt and alone.
    """
    decoding = trace.phases == DECODE
    if bool(decoding.any()):
        return trace.select(decoding), DECODE
    return trace.token_by_token(), PREFILL


def hit_rate_curves(
    trace: RoutingTrace,
    shares: Sequence[float] = SHARES,
    progress: Callable[[float], None] | None = None,
) -> HitRateCurves:
    """Simulates every policy at each share of all experts (and at the least), and pinned experts beside them.

    Experts are those of layers that were called. A capacity is a number of slots, which the plugin divides as it would
    (`SlotDivision`). Only decoding counts (see `decoding_calls`): prompts pass by a cache. "belady" knows the future,
    has all slots for its cache and starts with the experts that are needed first, which bounds the others; "static" has
    the experts that the warm-up used most, and no other comes. Raises InvalidInputError for a trace without calls.
    """
    if len(trace.experts) == 0:
        raise InvalidInputError("the trace holds no call: record some tokens first.")
    calls, phase = decoding_calls(trace.select(trace.tokens_of_calls > 0))
    calls = calls.called_layers_only()
    bank = calls.num_layers * calls.num_experts
    least = SlotDivision.of(bank, calls.num_layers, calls.num_experts, calls.top_k).least
    sizes = sorted({least} | {round(share * bank) for share in shares if round(share * bank) >= least})
    replay = _Replay(calls)
    jobs = [(policy, capacity) for policy in (*POLICIES, "static") for capacity in sizes]
    rates: dict[tuple[str, int], float] = {}
    with ThreadPoolExecutor() as pool:
        for job, rate in zip(jobs, pool.map(replay.hit_rate, jobs), strict=True):
            rates[job] = rate
            if progress is not None:
                progress(len(rates) / len(jobs))
    curves = tuple(
        HitRates(policy, np.array(sizes), np.array([rates[policy, size] for size in sizes]))
        for policy in (*POLICIES, "static")
    )
    cycle = calls.num_layers * calls.top_k
    capacity = max(round(MISS_SHARE * bank), least)
    counts = np.zeros((trace.num_layers, trace.num_experts), np.int64)
    counts[np.unique(trace.layers[trace.tokens_of_calls > 0])] = replay.misses(MISS_POLICY, capacity)
    return HitRateCurves(
        phase=phase,
        num_layers=calls.num_layers,
        bank=bank,
        cycle=cycle,
        least=least,
        tokens=round(len(calls.experts) / cycle),
        warmup_tokens=round(len(replay.warmup.experts) / cycle),
        lookups=replay.num_lookups,
        rows=float(calls.tokens_of_calls.mean()),
        curves=curves,
        misses=Misses(MISS_POLICY, capacity, counts),
    )


class _Replay:
    """Decoding calls, of which the first part fills a cache and the rest counts. Where a single pass is all there is,
    everything counts.
    """

    def __init__(self, calls: RoutingTrace) -> None:
        self._calls = calls
        first = int(calls.num_calls * WARMUP)
        starts = np.flatnonzero(calls.layers[first:] == calls.layers[0])
        self._first = first + int(starts[0]) if starts.size else 0
        self._tail = calls.select(slice(self._first, None))
        self.warmup = calls.select(slice(self._first))
        layers = np.repeat(calls.layers.astype(np.int64), np.diff(calls.offsets))
        self._keys = keys = layers * calls.num_experts + calls.experts
        head = int(calls.offsets[self._first])
        self._bank = calls.num_layers * calls.num_experts
        used = np.bincount(keys[:head], minlength=self._bank)
        self._most_used_first = np.argsort(-used, kind="stable")
        distinct, first_use = np.unique(keys[head:], return_index=True)
        self._needed_first = distinct[np.argsort(first_use)]

    def hit_rate(self, job: tuple[str, int]) -> float:
        """The hit rate of (policy, capacity)."""
        policy, capacity = job
        if policy == "static":
            return self._static(capacity)
        if policy == "belady":
            setup = CacheSetup(capacity, policy, preloaded=self._needed_first[:capacity].tolist())
            outcomes = simulate_cache(self._tail, setup).outcomes
        else:
            outcomes = self._online(policy, capacity)
        hits, misses = int((outcomes == 1).sum()), int((outcomes == 0).sum())
        return hits / max(hits + misses, 1)

    def misses(self, policy: str, capacity: int) -> Array:
        """How often each expert [L, E] was not there."""
        missed = self._keys[int(self._calls.offsets[self._first]) :][self._online(policy, capacity) == 0]
        counts: Array = np.bincount(missed, minlength=self._bank).reshape(-1, self._calls.num_experts)
        return counts

    def _online(self, policy: str, capacity: int) -> Array:
        """Outcomes, after the warm-up, of the plugin's cache with so many slots."""
        calls = self._calls
        slots = SlotDivision.of(capacity, calls.num_layers, calls.num_experts, calls.top_k)
        setup = CacheSetup(slots.capacity, policy, slots.layer_floor, share=slots.share)
        return simulate_cache(calls, setup).outcomes[int(calls.offsets[self._first]) :]

    def _static(self, capacity: int) -> float:
        pinned = np.zeros(self._bank, bool)
        pinned[self._most_used_first[:capacity]] = True
        lookups = self._lookups
        return float(pinned[lookups].mean()) if lookups.size else 0.0

    @property
    def num_lookups(self) -> int:
        """Lookups that count."""
        return len(self._lookups)

    @cached_property
    def _lookups(self) -> Array:
        """Keys of the distinct experts of each call that counts."""
        tail, sizes = self._tail, np.diff(self._tail.offsets)
        keys = np.repeat(tail.layers.astype(np.int64), sizes) * tail.num_experts + tail.experts
        calls = np.repeat(np.arange(tail.num_calls, dtype=np.int64), sizes)
        result: Array = np.unique(calls * self._bank + keys) % self._bank
        return result
