"""The cache of tiles. Section numbers are those of the specification."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onnx_moe.cache import ExpertCache, create_moe_cache
from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.routing import CacheSetup, RoutingTrace, simulate_cache
from onnx_moe.routing.trace import Call

#: Half a MiB-thousandth more than two tiles of 64 × 64 float16.
TWO_TILES_MB = 0.019


def tile(value: int = 0) -> NDArray[np.float16]:
    return np.full((64, 64), value, np.float16)


class Maker:
    """Makes tiles, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> NDArray[np.float16]:
        self.calls += 1
        return tile(self.calls)


def no_maker() -> Any:
    raise AssertionError("the tile should have been there")


def test_7_a_tile_is_made_once() -> None:
    cache, make = ExpertCache(8, 4), Maker()
    first = cache.get_expert_tile(0, 1, 2, make)
    assert cache.get_expert_tile(0, 1, 2, make) is first
    assert make.calls == 1


def test_7_fractions_of_a_mib_hold_two_tiles_and_the_third_evicts() -> None:
    cache, make = ExpertCache(8, 4, TWO_TILES_MB), Maker()
    for index in (0, 1):
        cache.get_expert_tile(0, 0, index, make)
    assert cache.num_entries == 2
    cache.get_expert_tile(0, 0, 0, no_maker)
    cache.get_expert_tile(0, 0, 2, make)
    assert cache.num_entries == 2
    assert cache.size_mb == 2 * 8192 / 2**20
    cache.get_expert_tile(0, 0, 0, no_maker)  # tile 1 was used least recently
    cache.get_expert_tile(0, 0, 1, make)
    assert make.calls == 4


def test_7_hit_rate() -> None:
    cache = ExpertCache(8, 4)
    assert cache.hit_rate == 0
    for index in (0, 1, 0, 1, 0):
        cache.get_expert_tile(0, 0, index, tile)
    assert cache.hit_rate == 0.6


def test_7_invalidating_an_expert_or_a_layer_leaves_the_others() -> None:
    cache = ExpertCache(8, 4)
    for layer, expert, index in ((0, 0, 0), (0, 0, 1), (0, 1, 0)):
        cache.get_expert_tile(layer, expert, index, tile)
    assert cache.invalidate_expert(0, 0) == 2
    assert cache.num_entries == 1
    cache.clear()
    for layer in (0, 0, 1):
        cache.get_expert_tile(layer, cache.num_entries, 0, tile)
    assert cache.invalidate_layer(0) == 2
    assert cache.num_entries == 1


def test_7_clear_leaves_nothing() -> None:
    cache = ExpertCache(8, 4)
    cache.get_expert_tile(0, 0, 0, tile)
    cache.clear()
    assert (cache.num_entries, cache.size_mb) == (0, 0.0)


def test_7_resize_to_nothing_evicts_all_ten() -> None:
    """The original's test stores experts 8 and 9 in a cache for 8; ids are checked here, so it has 10."""
    cache = ExpertCache(10, 4)
    for expert in range(10):
        cache.get_expert_tile(0, expert, 0, tile)
    assert cache.resize(0) == 10
    assert (cache.num_entries, cache.cache_size_bytes) == (0, 0)
    assert cache.get_stats()["per_layer"][0]["evictions"] == 10
    assert cache.get_expert_tile(0, 0, 0, lambda: tile(7))[0, 0] == 7, "a tile that does not fit is given uncached"
    assert cache.num_entries == 0


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list], ids=["numpy", "torch", "list"])
def test_7_activations_are_counted_by_expert(kind: Callable[[Any], Any]) -> None:
    cache = ExpertCache(8, 4)
    cache.record_expert_activation(1, kind([[0, 1], [0, 2], [1, 3]]))
    layer = cache.get_layer_stats(1)
    assert [layer.get_expert_stats(expert).activation_count for expert in range(4)] == [2, 2, 1, 1]
    assert layer.get_expert_stats(0).activation_rate == 2 / 3
    assert cache.get_layer_stats(0).total_tokens == 0


def test_7_busy_experts_are_candidates_for_prefetching() -> None:
    cache = ExpertCache(8, 4, prefetch_k=2)
    for other in (1, 2, 3):
        cache.record_expert_activation(0, [[0, other]])
    assert cache.get_prefetch_candidates(0) == [0, 1]
    assert cache.get_prefetch_candidates(1) == []


def test_7_statistics() -> None:
    cache = ExpertCache(64, 28)
    for _ in range(2):
        cache.get_expert_tile(0, 5, 0, tile)
    stats = cache.get_stats()
    assert set(stats) == {"global", "memory", "config", "per_layer"}
    assert (stats["global"]["total_hits"], stats["global"]["total_misses"]) == (1, 1)
    assert stats["global"]["lookups"] == 2
    assert stats["per_layer"][0]["cache_hits"] == stats["per_layer"][0]["cache_misses"] == 1
    assert len(stats["per_layer"]) == 28
    assert stats["memory"]["num_entries"] == 1
    assert stats["memory"]["size_mb"] == 8192 / 2**20
    assert stats["memory"]["utilization"] == 8192 / 2**29
    assert stats["config"]["tile_shape"] == (64, 64)


def test_7_repr_names_the_class_and_its_sizes() -> None:
    text = repr(ExpertCache(64, 28))
    assert "ExpertCache" in text
    assert "num_experts=64" in text
    assert "num_layers=28" in text


def test_7_a_configuration_says_how_many_layers_and_experts() -> None:
    cache = create_moe_cache({"num_hidden_layers": 28, "num_experts": 64}, cache_size_mb=256)
    assert (cache.num_layers, cache.num_experts, cache.cache_size_bytes) == (28, 64, 256 * 1024 * 1024)
    mixtral = create_moe_cache({"num_hidden_layers": 32, "num_local_experts": 8})
    assert (mixtral.num_layers, mixtral.num_experts, mixtral.cache_size_bytes) == (32, 8, 512 * 1024 * 1024)


@pytest.mark.parametrize("layers", ["num_hidden_layers", "n_layer", "num_layers"])
@pytest.mark.parametrize("experts", ["num_experts", "num_local_experts", "n_experts", "n_routed_experts"])
def test_every_name_of_layers_and_experts_is_known(layers: str, experts: str) -> None:
    config = {layers: 5, experts: 7}
    nested = SimpleNamespace(text_config=SimpleNamespace(**config), vision_config=None)
    for form in (config, SimpleNamespace(**config), nested):
        cache = create_moe_cache(form, policy="decayed-lfu")
        assert (cache.num_layers, cache.num_experts, cache.policy) == (5, 7, "decayed-lfu")


def test_7_a_configuration_without_the_numbers_is_an_error_rather_than_a_guess() -> None:
    """The original guesses 32 layers of 64 experts."""
    with pytest.raises(InvalidInputError, match=r"how many experts .*n_routed_experts"):
        create_moe_cache({"num_hidden_layers": 28})
    with pytest.raises(InvalidInputError, match=r"how many layers .*num_hidden_layers"):
        create_moe_cache({"num_experts": 28})


def test_prefetching_makes_eight_tiles_a_call_and_leaves_the_rest_queued() -> None:
    cache = ExpertCache(8, 4)
    made: list[int] = []

    def make(index: int) -> NDArray[np.float16]:
        made.append(index)
        return tile(index)

    cache.get_expert_tile(0, 3, 2, tile)
    assert cache.prefetch_expert_tiles(0, 3, list(range(12)), make) == 8
    assert made == [0, 1, 3, 4, 5, 6, 7, 8]
    assert cache.num_queued == 3
    assert cache.prefetch_expert_tiles(0, 3, [9, 10, 12], make) == 4
    assert made[8:] == [9, 10, 11, 12]
    assert cache.num_queued == 0
    stats = cache.get_layer_stats(0)
    assert (stats.cache_hits, stats.cache_misses, stats.prefetch_hits) == (0, 1, 0)
    for _ in range(2):
        assert cache.get_expert_tile(0, 3, 12, no_maker)[0, 0] == 12
    assert (stats.cache_hits, stats.prefetch_hits) == (2, 1), "of a prefetched tile, the first hit counts as such"


def test_prefetching_that_fails_keeps_the_rest() -> None:
    cache = ExpertCache(8, 4)

    def make(index: int) -> NDArray[np.float16]:
        if index == 1:
            raise OSError("disk")
        return tile(index)

    with pytest.raises(OSError, match="disk"):
        cache.prefetch_expert_tiles(0, 3, [0, 1, 2], make)
    assert cache.num_queued == 1
    assert cache.prefetch_expert_tiles(0, 3, [], make) == 1
    assert cache.num_entries == 2


def test_the_queue_is_bounded_and_invalidation_empties_it() -> None:
    cache = ExpertCache(8, 4)
    cache.prefetch_expert_tiles(0, 3, list(range(1024)), tile)
    assert cache.num_queued == 1016
    with pytest.raises(InvalidInputError, match="9 more tiles of expert 2 of layer 1 do not fit into"):
        cache.prefetch_expert_tiles(1, 2, list(range(9)), tile)
    assert cache.invalidate_layer(1) == 0
    assert cache.num_queued == 1016
    assert cache.invalidate_expert(0, 3) == 8
    assert cache.num_queued == cache.num_entries == 0


def test_without_prefetching_nothing_is_made() -> None:
    cache = ExpertCache(8, 4, enable_prefetch=False)
    assert cache.prefetch_expert_tiles(0, 0, [0, 1], no_maker) == 0
    assert cache.num_queued == cache.num_entries == 0


def test_sizes_are_those_of_arrays_and_of_what_holds_them() -> None:
    cache = ExpertCache(8, 4)
    parts = {"codes": torch.zeros(10, 3, dtype=torch.bfloat16), "scales": [np.zeros(5, np.uint8), b"1234567"]}
    assert cache.get_expert_tile(0, 0, 0, lambda: parts) is parts  # type: ignore[arg-type, return-value]
    assert cache.get_stats()["memory"]["size_mb"] == (60 + 5 + 7) / 2**20


def test_a_leased_tile_stays() -> None:
    cache = ExpertCache(8, 4, TWO_TILES_MB)
    with cache.lease_expert_tile(0, 0, 0, lambda: tile(1)) as leased:
        for index in range(1, 5):
            cache.get_expert_tile(0, 0, index, tile)
        assert cache.get_expert_tile(0, 0, 0, no_maker) is leased
        assert cache.resize(0) == 1
        assert cache.num_entries == 1
        assert cache.invalidate_expert(0, 0) == 1
        assert cache.get_expert_tile(0, 0, 0, lambda: tile(2))[0, 0] == 2
        assert cache.size_mb > 0, "its bytes are there as long as its lease"
    assert (cache.num_entries, cache.size_mb) == (0, 0.0)


def test_leases_count() -> None:
    cache = ExpertCache(8, 4, TWO_TILES_MB)
    with cache.lease_expert_tile(0, 0, 0, tile):
        with cache.lease_expert_tile(0, 0, 0, no_maker):
            pass
        for index in range(1, 5):
            cache.get_expert_tile(0, 0, index, tile)
        cache.get_expert_tile(0, 0, 0, no_maker)
    for index in range(1, 3):
        cache.get_expert_tile(0, 1, index, tile)
    assert cache.get_expert_tile(0, 0, 0, lambda: tile(9))[0, 0] == 9


def test_decayed_lfu_keeps_tiles_of_experts_that_are_used_often() -> None:
    survivors = {}
    for policy in ("lru", "decayed-lfu"):
        cache = ExpertCache(8, 4, TWO_TILES_MB, policy=policy)
        for _ in range(5):
            cache.record_expert_activation(0, [[0]])
        cache.get_expert_tile(0, 0, 0, tile)
        for expert in (1, 2, 3):
            cache.record_expert_activation(0, [[expert]])
            cache.get_expert_tile(0, expert, 0, tile)
        survivors[policy] = [key.expert_id for key in cache._store._held]
    assert survivors == {"lru": [2, 3], "decayed-lfu": [0, 3]}


@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
@pytest.mark.parametrize("capacity", [1, 3, 7, 12])
def test_decisions_are_the_simulators(policy: str, capacity: int) -> None:
    """One expert a call: the cache of objects and the replay of the plugin's own cache decide alike."""
    rng = np.random.default_rng(capacity)
    layers, experts = rng.integers(0, 3, 600), rng.zipf(1.5, 600) % 8
    calls = [Call(int(layer), np.array([[expert]], np.int32)) for layer, expert in zip(layers, experts, strict=True)]
    trace = RoutingTrace.of_calls(calls, 8, 3)
    expected = simulate_cache(trace, CacheSetup(capacity, policy, decay=0.9))
    cache = ExpertCache(8, 3, capacity * 8192 / 2**20, policy=policy, decay=0.9)
    made = Maker()
    outcomes = []
    for call in calls:
        cache.record_expert_activation(call.layer, call.expert_ids)
        before = made.calls
        cache.get_expert_tile(call.layer, int(call.expert_ids[0, 0]), 0, made)
        outcomes.append(int(made.calls == before))
    assert outcomes == expected.outcomes.tolist()
    counters = cache.get_stats()["global"]
    assert counters["total_evictions"] == expected.evictions > 0
    assert (counters["total_hits"], counters["total_misses"]) == (expected.hits, expected.misses)


def test_what_a_maker_raises_passes_and_nothing_is_kept() -> None:
    cache = ExpertCache(8, 4)

    def broken() -> Any:
        raise OSError("disk")

    with pytest.raises(OSError, match=r"^disk$"):
        cache.get_expert_tile(0, 0, 0, broken)
    assert cache.num_entries == 0
    assert cache.get_expert_tile(0, 0, 0, lambda: tile(3))[0, 0] == 3


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda cache: cache.get_expert_tile(4, 0, 0, tile), "layer_idx is 4, but must be an integer from 0 to 3"),
        (lambda cache: cache.get_expert_tile(0, 8, 0, tile), "expert_id is 8, but must be an integer from 0 to 7"),
        (lambda cache: cache.get_expert_tile(0, 0, -1, tile), "tile_idx is -1, but must be 0 or more"),
        (
            lambda cache: cache.get_expert_tile(0, 5, 1, lambda: None),
            "tile 1 of expert 5 of layer 0 was made, but a N",
        ),
        (lambda cache: cache.record_expert_activation(-1, [[0]]), "layer_idx is -1"),
        (lambda cache: cache.record_expert_activation(0, [[8]]), "expert_ids holds 8 to 8, but experts are numbered 0"),
        (lambda cache: cache.record_expert_activation(0, [[0.5]]), "expert_ids is float64 of shape"),
        (lambda cache: cache.resize(-1), "the cache's size is -1"),
        (lambda cache: cache.invalidate_layer(9), "layer_idx is 9"),
        (lambda _: ExpertCache(8, 4, float("nan")), "the cache's size is nan"),
        (lambda _: ExpertCache(0, 4), "num_experts is 0"),
        (lambda _: ExpertCache(8, 4, policy="belady"), "policy='belady' is unknown: use one of lru, decayed-lfu"),
        (lambda _: ExpertCache(8, 4, policy="decayed-lfu", decay=0), "decay is 0: it must lie in"),
    ],
)
def test_misuse_is_one_clear_error(misuse: Callable[[ExpertCache], Any], message: str) -> None:
    cache = ExpertCache(8, 4)
    with pytest.raises(OnnxMoeError) as error:
        misuse(cache)
    assert message in str(error.value)
    assert cache.num_entries == 0
