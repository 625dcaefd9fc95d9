"""A cache's statistics as a dictionary, the same for caches of arrays and the experts of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_moe.cache.sizes import MEBIBYTE
from onnx_moe.cache.statistics import LayerStats

_HOT_RATE, _HOT_EXPERTS = 0.05, 10


@dataclass(frozen=True)
class Occupancy:
    """What is in a cache: objects, their bytes, and the bytes that it may hold."""

    entries: int
    nbytes: int
    budget: int


def cache_report(
    counters: Mapping[str, int], occupancy: Occupancy, config: Mapping[str, Any], per_layer: Mapping[int, Any]
) -> dict[str, Any]:
    """{"global", "memory", "config", "per_layer"}; counters: total_hits, total_misses and whatever else there is."""
    lookups = counters["total_hits"] + counters["total_misses"]
    return {
        "global": {"lookups": lookups, "hit_rate": counters["total_hits"] / lookups if lookups else 0.0, **counters},
        "memory": {
            "size_mb": occupancy.nbytes / MEBIBYTE,
            "max_size_mb": occupancy.budget / MEBIBYTE,
            "num_entries": occupancy.entries,
            "utilization": occupancy.nbytes / occupancy.budget if occupancy.budget else 0.0,
        },
        "config": dict(config),
        "per_layer": dict(per_layer),
    }


def totals(layers: Sequence[LayerStats]) -> dict[str, int]:
    """The layers' counters, summed."""
    names = {
        "total_hits": "cache_hits",
        "total_misses": "cache_misses",
        "total_evictions": "evictions",
        "joined": "joined",
        "prefetch_hits": "prefetch_hits",
    }
    return {total: sum(getattr(layer, name) for layer in layers) for total, name in names.items()}


def layer_report(layer: LayerStats) -> dict[str, Any]:
    """One layer's counters and hot experts."""
    return {
        "hit_rate": layer.hit_rate,
        "cache_hits": layer.cache_hits,
        "cache_misses": layer.cache_misses,
        "joined": layer.joined,
        "prefetch_hits": layer.prefetch_hits,
        "evictions": layer.evictions,
        "hot_experts": layer.get_hot_experts(threshold=_HOT_RATE, top_k=_HOT_EXPERTS),
        "num_experts_tracked": len(layer.expert_stats),
    }
