"""The cache of a session reads like the cache of tiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_moe.cache import ExpertCache, engine
from onnx_moe.errors import OnnxMoeError
from tests.residency.model import Stack, calls, run, save, session


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Stack(), tmp_path_factory.mktemp("engine"))


def test_a_sessions_cache_reads_like_one_of_tiles(model: Path) -> None:
    live = session(model, residency="pool", cache_bytes="50%")
    statistics = run(live, calls(seed=3)).statistics
    cache = engine(live)
    report, tiles = cache.get_stats(), ExpertCache(16, 3).get_stats()
    assert set(report) == set(tiles)
    assert set(report["memory"]) == set(tiles["memory"])
    assert set(report["global"]) <= set(tiles["global"])
    assert report["global"]["lookups"] == statistics["lookups"] > 0
    assert cache.hit_rate == report["global"]["hit_rate"] == statistics["hits"] / statistics["lookups"]
    assert cache.num_entries == report["memory"]["num_entries"] == statistics["resident"]
    assert sum(layer["num_entries"] for layer in report["per_layer"].values()) == cache.num_entries
    assert sum(layer["cache_misses"] for layer in report["per_layer"].values()) == statistics["misses"]
    assert cache.size_mb == statistics["resident"] * statistics["slot_bytes"] / 2**20
    assert cache.cache_size_bytes == statistics["budget_bytes"]
    assert "CacheEngine(mode=pool, num_layers=3" in repr(cache)


def test_a_sessions_cache_is_resized_in_mib(model: Path) -> None:
    live = session(model, residency="pool", cache_bytes="100%")
    run(live, calls(seed=3))
    cache = engine(live)
    before = cache.num_entries
    smaller = 20 * cache.statistics()["slot_bytes"]
    evicted = cache.resize(smaller / 2**20)
    assert evicted == before - cache.num_entries > 0
    assert cache.cache_size_bytes == smaller
    with pytest.raises(OnnxMoeError, match="the cache's size is -3"):
        cache.resize(-3)
    with pytest.raises(OnnxMoeError, match=r"set onnx_moe\.cache_bytes to at least"):
        cache.resize(0.001)
