"""Predicting the experts that a model is about to use, and loading them meanwhile: for arrays of one's own.

The experts of an ONNX Runtime session are prefetched by the plugin itself: docs/residency.md.
"""

from onnx_moe.prefetch.loader import AsyncExpertLoader, async_load_experts
from onnx_moe.prefetch.lru import ExpertKey, ExpertLRUCache
from onnx_moe.prefetch.prediction import PrefetchStrategy, RoutingHistory, predict_next_experts
from onnx_moe.prefetch.prefetcher import ExpertPrefetcher, PrefetchConfig
from onnx_moe.prefetch.statistics import PrefetchStats

__all__ = [
    "AsyncExpertLoader",
    "ExpertKey",
    "ExpertLRUCache",
    "ExpertPrefetcher",
    "PrefetchConfig",
    "PrefetchStats",
    "PrefetchStrategy",
    "RoutingHistory",
    "async_load_experts",
    "predict_next_experts",
]
