"""Routing analysis: which experts tokens choose, and what that means for a cache of experts."""

from __future__ import annotations

from onnx_moe.routing.cache_simulation import POLICIES, CacheResult, CacheSetup, simulate_cache
from onnx_moe.routing.recording import LayerCounters, Recording, record
from onnx_moe.routing.trace import Call, RoutingTrace

__all__ = [
    "POLICIES",
    "CacheResult",
    "CacheSetup",
    "Call",
    "LayerCounters",
    "Recording",
    "RoutingTrace",
    "record",
    "simulate_cache",
]
