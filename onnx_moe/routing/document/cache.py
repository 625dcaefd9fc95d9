"""The section on caches: hit rates by size, and the sizes that reach a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe.routing.cache_simulation import SlotDivision
from onnx_moe.routing.trace import DECODE, PHASES

if TYPE_CHECKING:
    from onnx_moe.routing.hit_rates import HitRateCurves
    from onnx_moe.routing.profile import RoutingProfile

#: Hit rates for which the least cache is sought, of the policy that the plugin takes by default.
TARGETS, POLICY = (0.8, 0.9, 0.95), "decayed-lfu"


def cache(profile: RoutingProfile) -> dict[str, Any]:
    """Hit-rate curves; without a sample of calls there are none."""
    model, found = profile.model, profile.hit_rates
    called = int((profile.counts["tokens"].sum(0) > 0).sum()) if found is None else found.num_layers
    bank, cycle = called * model.num_experts, called * model.top_k
    least = SlotDivision.of(bank, called, model.num_experts, model.top_k).least if called else 0

    def in_bytes(experts: Any) -> Any:
        return None if experts is None or model.expert_bytes is None else experts * model.expert_bytes

    section: dict[str, Any] = {
        "phase": PHASES[DECODE if found is None else found.phase],
        "expert_bytes": model.expert_bytes,
        "layers": called,
        "bank_experts": bank,
        "bank_bytes": in_bytes(bank),
        "token_cycle_experts": cycle,
        "token_cycle_bytes": in_bytes(cycle),
        "least_experts": least,
        "least_bytes": in_bytes(least),
        "lookups_per_token": None if found is None else found.lookups_per_token,
        "step_tokens": None if found is None else found.rows,
        "simulated_tokens": 0 if found is None else found.tokens,
        "warmup_tokens": 0 if found is None else found.warmup_tokens,
        "curves": [],
        "targets": [],
        "misses": None,
        "whole_run": {phase: _whole_run(profile, i, found) for i, phase in enumerate(PHASES)},
    }
    if found is None:
        return section
    section["curves"] = [
        {
            "policy": curve.policy,
            "capacity": curve.capacity,
            "bytes": in_bytes(curve.capacity),
            "hit_rate": curve.hit_rate,
        }
        for curve in found.curves
    ]
    section["misses"] = _misses(found, model.expert_bytes)
    for target in TARGETS:
        capacity = found.curve(POLICY).least_capacity(target)
        section["targets"].append(
            {
                "hit_rate": target,
                "policy": POLICY,
                "capacity": capacity,
                "bytes": in_bytes(capacity),
                "share": None if capacity is None else capacity / bank,
            }
        )
    return section


def _misses(found: HitRateCurves, expert_bytes: int | None) -> dict[str, Any]:
    """Which experts are missing, and what that costs a token in each layer."""
    counts = found.misses.counts
    of_layer = counts.sum(1)
    per_token = of_layer / max(found.tokens - found.warmup_tokens, 1)
    return {
        "policy": found.misses.policy,
        "capacity": found.misses.capacity,
        "share": counts / np.maximum(of_layer, 1)[:, None],
        "per_token": per_token,
        "bytes_per_token": None if expert_bytes is None else per_token * expert_bytes,
    }


def _whole_run(profile: RoutingProfile, phase: int, found: HitRateCurves | None) -> dict[str, Any] | None:
    """The LRU stack distances of all lookups of a phase: how many other experts were used between two uses of one."""
    distances = profile.counts["stack_distances"][phase]
    if not distances.any():
        return None
    again, first_uses = distances[:-1], distances[-1]
    bins = int(np.flatnonzero(again).max(initial=1)).bit_length()
    edges = np.concatenate([[0], 2 ** np.arange(bins)])
    edges = edges[edges < len(again)]
    capacity = np.array([]) if found is None else found.curve("lru").capacity
    hits = np.concatenate([[0], np.cumsum(again)])
    return {
        "lookups": distances.sum(),
        "first_uses": first_uses,
        "distance_edges": edges,
        "distance_counts": np.add.reduceat(again, edges),
        "capacity": capacity,
        "lru_hit_rate": hits[np.minimum(capacity, len(again)).astype(int)] / distances.sum(),
    }
