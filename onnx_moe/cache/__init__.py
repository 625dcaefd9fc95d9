"""Experts in memory: what the plugin keeps there for a session, and caches for arrays of one's own."""

from onnx_moe.cache.engine import CacheEngine, engine
from onnx_moe.cache.expert_cache import ExpertCache
from onnx_moe.cache.factory import create_moe_cache
from onnx_moe.cache.statistics import ExpertStats, LayerStats
from onnx_moe.cache.store import CacheEntry
from onnx_moe.cache.tiles import TileCoordinator, TileKey

__all__ = [
    "CacheEngine",
    "CacheEntry",
    "ExpertCache",
    "ExpertStats",
    "LayerStats",
    "TileCoordinator",
    "TileKey",
    "create_moe_cache",
    "engine",
]
