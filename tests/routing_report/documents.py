"""A small profile document, written by hand: three layers of eight experts, two a token."""

from __future__ import annotations

from typing import Any

LAYERS, EXPERTS, TOP_K = 3, 8, 2
EXPERT_BYTES = 1_000_000
GRID = [0, 12.5, 25, 50, 100]
SHARES = [
    [0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.05, 0.0],
    [0.125] * 8,
    [0.05, 0.3, 0.1, 0.25, 0.15, 0.05, 0.05, 0.05],
]
CAPACITIES = [3, 6, 12, 18, 24]


def small_document() -> dict[str, Any]:
    """A fresh copy, to change at will."""
    return {
        "format": "onnx-moe routing profile",
        "version": 2,
        "model": {
            "name": "small",
            "num_layers": LAYERS,
            "num_experts": EXPERTS,
            "top_k": TOP_K,
            "layer_names": [f"layers.{layer}.router" for layer in range(LAYERS)],
            "expert_bytes": EXPERT_BYTES,
        },
        "recorded": {
            "source": "recorded",
            "created": "2026-11-26T17:45:00+00:00",
            "calls": {"prefill": 0, "decode": 6000},
            "tokens": {"prefill": 0, "decode": 2000},
            "requests": 4,
            "dropped_calls": 0,
            "facts": {"recorder": "full"},
            "notes": [],
            "has_weights": True,
            "has_all_weights": True,
            "has_router_probabilities": False,
        },
        "summary": {
            "num_experts": EXPERTS,
            "num_layers": LAYERS,
            "top_k": TOP_K,
            "total_tokens_profiled": 6000,
            "avg_load_balance_cv": 0.8,
            "avg_entropy": 0.85,
            "avg_gini": 0.3,
            "tokens": 2000,
            "avg_active_experts": 7.7,
            "avg_overlap_lag1": 0.42,
            "avg_load_balancing": 1.6,
        },
        "load_balance": {},
        "cooccurrence": {
            "top_pairs": [{"experts": [0, 1], "count": 90}],
            "strongest_pairs": [{"experts": [2, 5], "count": 81, "layer": 2, "lift": 3.2}],
            "per_layer": [
                {"layer": n, "top": [{"experts": [2, 5], "count": 81, "lift": 1 + n}]} for n in range(LAYERS)
            ],
        },
        "predictability": {"per_layer_from_previous": [None, 0.4, 0.5]},
        "per_layer": [_layer(number) for number in range(LAYERS)],
        "maps": {
            "prefill": None,
            "decode": {"share": SHARES, "mass": SHARES[::-1]},
            "all": {"share": SHARES, "mass": SHARES[::-1]},
        },
        "concentration": {
            "prefill": None,
            "decode": {
                "experts_percent": GRID,
                "per_layer": [{"in_sample": [0, 40, 60, 80, 100], "held_out": [0, 30, 50, 75, 100]}] * LAYERS,
                "all": {"in_sample": [0, 42, 61, 82, 100], "held_out": [0, 33, 52, 78, 100]},
            },
        },
        "balance": {
            "prefill": None,
            "decode": {
                "basis": "selected_weights",
                "per_layer": [2.4, 1.0, 1.7],
                "window_tokens": 500,
                "windows": [[2.0, 1.0, 1.5], [2.5, 1.1, 1.6], [3.5, 1.0, 1.7], [1.6, 1.0, 2.0]],
                "entropy": [[0.8, 1.0, 0.9]] * 4,
            },
        },
        "time": {
            "prefill": None,
            "decode": {
                "lags": list(range(1, 17)),
                "overlap": [[0.5 - 0.02 * lag for lag in range(16)]] * LAYERS,
                "chance": [0.3, 0.25, 0.28],
                "new_experts": [1.0, 1.0, 1.0],
                "reuse_edges": [1, 2, 4, 8],
                "reuse_counts": [[40, 30, 20, 10], [10, 10, 10, 10], [4, 3, 2, 1]],
                "reuse_median": [2.0, 3.0, 4.0],
            },
        },
        "transitions": {"per_layer": [None, _link(1, 0.25), _link(2, 0.75)]},
        "predictors": {
            "sampled_tokens": 2000,
            "budgets": [TOP_K, 2 * TOP_K],
            "scores": [
                _score(name, budget, recall * (1 if budget == TOP_K else 1.5))
                for name, recall in (("random", 0.25), ("popularity", 0.4), ("cross-layer", 0.5))
                for budget in (TOP_K, 2 * TOP_K)
            ],
        },
        "drift": {"prefill": None, "decode": {"per_layer": [0.1, 0.02, 0.05], "noise": [0.01, 0.01, 0.01]}},
        "prompt_classes": {
            "names": ["code.txt", "prose.txt"],
            "tokens": [900, 1100],
            "divergence": [[0.0, 0.31], [0.31, 0.0]],
            "noise": [[0.001, 0.002], [0.002, 0.001]],
        },
        "cache": {
            "phase": "decode",
            "expert_bytes": EXPERT_BYTES,
            "bank_experts": LAYERS * EXPERTS,
            "bank_bytes": LAYERS * EXPERTS * EXPERT_BYTES,
            "token_cycle_experts": LAYERS * TOP_K,
            "token_cycle_bytes": LAYERS * TOP_K * EXPERT_BYTES,
            "layers": LAYERS,
            "least_experts": LAYERS * TOP_K + 1,
            "least_bytes": (LAYERS * TOP_K + 1) * EXPERT_BYTES,
            "lookups_per_token": LAYERS * TOP_K,
            "step_tokens": 1.0,
            "misses": {
                "policy": "decayed-lfu",
                "capacity": 7,
                "share": [list(reversed(row)) for row in SHARES],
                "per_token": [0.5, 1.0, 0.25],
                "bytes_per_token": [500_000, 1_000_000, 250_000],
            },
            "simulated_tokens": 2000,
            "warmup_tokens": 500,
            "curves": [
                curve("lru", [0.0, 0.3, 0.7, 0.9, 0.99]),
                curve("decayed-lfu", [0.2, 0.5, 0.8, 0.91, 0.99]),
                curve("belady", [0.4, 0.7, 0.9, 0.97, 0.99]),
                curve("static", [0.2, 0.4, 0.6, 0.75, 1.0]),
            ],
            "whole_run": {
                "prefill": None,
                "decode": {
                    "lookups": 12000,
                    "first_uses": 24,
                    "capacity": CAPACITIES,
                    "lru_hit_rate": [0.0, 0.2, 0.6, 0.8, 0.9],
                },
            },
            "targets": [
                {
                    "hit_rate": rate,
                    "policy": "decayed-lfu",
                    "capacity": capacity,
                    "bytes": capacity * EXPERT_BYTES,
                    "share": capacity / 24,
                }
                for rate, capacity in ((0.8, 12), (0.9, 18), (0.95, 21))
            ],
        },
    }


def curve(policy: str, rates: list[float]) -> dict[str, Any]:
    """A hit-rate curve at CAPACITIES."""
    return {
        "policy": policy,
        "capacity": CAPACITIES,
        "bytes": [n * EXPERT_BYTES for n in CAPACITIES],
        "hit_rate": rates,
    }


def _layer(number: int) -> dict[str, Any]:
    return {
        "layer": number,
        "name": f"layers.{number}.router",
        "tokens": 2000,
        "active_experts": 7 if number == 0 else 8,
        "dead_experts": 1 if number == 0 else 0,
        "load_balance_cv": 0.8,
        "entropy": [0.7, 1.0, 0.85][number],
        "gini": [0.6, 0.0, 0.4][number],
        "hot_experts": [0],
        "cold_experts": [3],
        "unseen_experts": 1 if number == 0 else 0,
        "load_balance_cv_all": 0.9,
        "max_over_mean": max(SHARES[number]) * EXPERTS,
        "load_balancing": [2.4, 1.0, 1.7][number],
        "experts_for": {"50": 1, "80": 3, "95": 6},
        "expected_uses": 500.0,
        "unseen_rate_bound": 0.0015,
    }


def _link(layer: int, bits: float) -> dict[str, Any]:
    top = [[[(expert + 1) % EXPERTS, 0.4], [expert, 0.3]] for expert in range(EXPERTS)]
    return {"layer": layer, "from_layer": layer - 1, "tokens": 2000, "mutual_information_bits": bits, "top": top}


def _score(name: str, budget: int, recall: float) -> dict[str, Any]:
    return {
        "predictor": name,
        "budget": budget,
        "recall": recall,
        "precision": recall,
        "mass_recall": recall,
        "whole_set": recall**TOP_K,
        "per_layer_recall": [recall] * LAYERS,
    }
