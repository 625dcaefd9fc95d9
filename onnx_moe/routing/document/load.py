"""Sections on load: summary, layers, heat maps, concentration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.routing import measures
from onnx_moe.routing.balance import balance_of
from onnx_moe.routing.trace import PHASES

if TYPE_CHECKING:
    from onnx_moe.routing.profile import RoutingProfile

Array = NDArray[Any]

#: Percent of the experts at which concentration is given.
PERCENTS = np.array([0, 1, 2, 3, 5, 7.5, 10, 12.5, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 75, 80, 90, 95, 100])
#: Percent of the selections for which the number of experts is given.
COVERAGES = (50, 80, 95)


def summary(profile: RoutingProfile) -> dict[str, Any]:
    """Means over layers."""
    counts, layers = profile.counts, profile.layers
    shared, tokens = (counts[name][:, :, 0].sum() for name in ("lag_shared", "lag_tokens"))
    return {
        "num_experts": counts.num_experts,
        "num_layers": counts.num_layers,
        "top_k": counts.top_k,
        "total_tokens_profiled": counts["tokens"].sum(),
        "avg_load_balance_cv": _mean([layer.load_balance_cv for layer in layers if layer.total_tokens]),
        "avg_entropy": _mean([layer.entropy for layer in layers if layer.total_tokens]),
        "avg_gini": _mean([layer.gini_coefficient for layer in layers if layer.total_tokens]),
        "tokens": counts["tokens"].sum(0).max(),
        "avg_active_experts": _mean([layer.active_experts for layer in layers if layer.total_tokens]),
        "avg_overlap_lag1": shared / (tokens * counts.top_k) if tokens else None,
        "avg_load_balancing": float(np.nanmean(values)) if np.isfinite(values := _balance(profile)).any() else None,
    }


def _mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def _balance(profile: RoutingProfile) -> Array:
    return balance_of(profile.counts, phase=None).per_layer


def load_balance(profile: RoutingProfile) -> dict[str, Any]:
    """Experts that are hot, cold, dead: of any layer, any layer, every layer with tokens; and of each layer."""
    layers = [layer for layer in profile.layers if layer.total_tokens]
    hot = sorted({expert for layer in layers for expert in layer.get_hot_experts()})
    cold = sorted({expert for layer in layers for expert in layer.get_cold_experts()})
    dead = sorted(set.intersection(*(set(layer.get_dead_experts()) for layer in layers))) if layers else []
    return {
        "hot_experts": hot,
        "cold_experts": cold,
        "dead_experts": dead,
        "num_hot": len(hot),
        "num_cold": len(cold),
        "num_dead": len(dead),
        "prunable_experts": dead,
        "hot_threshold": profile.thresholds.hot,
        "cold_threshold": profile.thresholds.cold,
        "hot_by_layer": [layer.get_hot_experts() for layer in profile.layers],
        "cold_by_layer": [layer.get_cold_experts() for layer in profile.layers],
        "dead_by_layer": [layer.get_dead_experts() for layer in profile.layers],
        "unseen_by_layer": [layer.unseen_experts for layer in profile.layers],
    }


def per_layer(profile: RoutingProfile) -> list[dict[str, Any]]:
    """One entry for each layer that had tokens."""
    balance = _balance(profile)
    loads = profile.counts.counts.sum(0)
    return [
        {
            "layer": layer.layer_idx,
            "name": profile.model.layer_names[layer.layer_idx],
            "tokens": layer.total_tokens,
            "active_experts": layer.active_experts,
            "dead_experts": layer.dead_experts,
            "load_balance_cv": layer.load_balance_cv,
            "entropy": layer.entropy,
            "gini": layer.gini_coefficient,
            "hot_experts": layer.get_hot_experts(),
            "cold_experts": layer.get_cold_experts(),
            "unseen_experts": len(layer.unseen_experts),
            "load_balance_cv_all": layer.load_balance_cv_all,
            "max_over_mean": layer.max_over_mean,
            "load_balancing": balance[layer.layer_idx],
            "experts_for": {str(c): measures.experts_for(loads[layer.layer_idx], c / 100) for c in COVERAGES},
            "expected_uses": layer.expected_uses,
            "unseen_rate_bound": layer.unseen_rate_bound,
        }
        for layer in profile.layers
        if layer.total_tokens
    ]


def maps(profile: RoutingProfile) -> dict[str, Any]:
    """Shares of selections and of gate mass, layer by expert."""
    counts, mass = profile.counts.counts, profile.counts["mass"]
    result = {phase: _map(counts[i], mass[i]) for i, phase in enumerate(PHASES)}
    return {**result, "all": _map(counts.sum(0), mass.sum(0))}


def _map(counts: Array, mass: Array) -> dict[str, Any] | None:
    if not counts.any():
        return None
    return {"share": _rows(counts), "mass": _rows(mass) if mass.any() else None}


def _rows(values: Array) -> Array:
    shares: Array = values / np.maximum(values.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
    return shares


def concentration(profile: RoutingProfile) -> dict[str, Any]:
    """How much the most used experts carry: as counted, and ranked by the first half, measured on the second."""
    return {phase: _concentration(profile, i) for i, phase in enumerate(PHASES)}


def _concentration(profile: RoutingProfile, phase: int) -> dict[str, Any] | None:
    counts = profile.counts.counts[phase]
    if not counts.any():
        return None
    halves = halves_of(profile, phase)
    layers = [_curves(counts[layer], [half[layer] for half in halves]) for layer in range(len(counts))]
    return {
        "experts_percent": PERCENTS,
        "per_layer": layers,
        "all": _curves(counts.reshape(-1), [half.reshape(-1) for half in halves]),
    }


def halves_of(profile: RoutingProfile, phase: int) -> list[Array]:
    """Counts [L, E] of the first and of the second half of a phase's windows."""
    counts = profile.counts
    windows = counts["window_counts"][phase]
    used = -(-int(counts["tokens"][phase].max()) // int(counts["window_tokens"][phase]))
    return [half.sum(0, dtype=np.int64) for half in (windows[: used // 2], windows[used // 2 : used])]


def _curves(counts: Array, halves: list[Array]) -> dict[str, Any]:
    top = PERCENTS / 100 * len(counts)
    first, second = halves
    held_out = 100 * measures.covered(first, second, top) if first.any() and second.any() else None
    return {"in_sample": 100 * measures.covered(counts, counts, top), "held_out": held_out}
