"""Experts in memory: what the plugin keeps there for a session."""

from onnx_moe.cache.engine import CacheEngine, engine

__all__ = ["CacheEngine", "engine"]
