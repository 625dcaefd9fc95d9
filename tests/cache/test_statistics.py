"""Counters of experts and layers, and the numbering of tiles. Section numbers are those of the specification."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_moe.cache import CacheEntry, ExpertStats, LayerStats, TileCoordinator, TileKey
from onnx_moe.errors import InvalidInputError


def test_7_tile_keys_compare_and_hash_by_value() -> None:
    assert TileKey(1, 2, 3) == TileKey(1, 2, 3)
    assert len({TileKey(1, 2, 3), TileKey(1, 2, 3), TileKey(1, 2, 4), TileKey(1, 3, 3), TileKey(2, 2, 3)}) == 4
    assert str(TileKey(1, 2, 3)) == "tile 3 of expert 2 of layer 1"


def test_7_an_entry_knows_how_often_and_when_it_was_touched() -> None:
    entry = CacheEntry(TileKey(0, 0, 0), np.zeros(4, np.float32), 16)
    before = entry.last_access
    assert (entry.access_count, entry.size_bytes) == (0, 16)
    time.sleep(0.01)
    entry.touch()
    assert entry.access_count == 1
    assert entry.last_access > before


def test_7_activation_rate_is_activations_by_token() -> None:
    stats = ExpertStats(3)
    assert stats.activation_rate == stats.recent_rate == 0
    stats.record_activation(10)
    stats.record_batch(100)
    assert stats.activation_rate == 0.1


def test_7_recent_rate_is_a_mean_of_the_last_100_batches() -> None:
    stats = ExpertStats(3)
    for count in [50] * 50 + [5] * 100:
        stats.record_activation(count)
    assert len(stats.recent_window) == 100
    assert stats.recent_rate == 5.0
    assert stats.activation_count == 50 * 50 + 5 * 100


def test_7_hit_rate_of_a_layer() -> None:
    layer = LayerStats(0)
    assert layer.hit_rate == 0
    layer.cache_hits, layer.cache_misses = 70, 30
    assert layer.hit_rate == 0.7


def test_7_a_layer_has_one_object_for_each_expert() -> None:
    layer = LayerStats(0)
    assert layer.get_expert_stats(5) is layer.get_expert_stats(5)
    assert layer.get_expert_stats(5).expert_id == 5


def test_7_hot_experts_are_sorted_by_recent_rate() -> None:
    layer = LayerStats(0)
    for expert in range(10):
        layer.get_expert_stats(expert).record_activation(expert)
    assert layer.get_hot_experts(top_k=3) == [9, 8, 7]
    assert layer.get_hot_experts(threshold=6.5) == [9, 8, 7]
    layer.get_expert_stats(20).record_activation(9)
    assert layer.get_hot_experts(top_k=2) == [9, 20], "equals in the order of their ids"


def test_experts_that_batches_leave_idle_cool_down() -> None:
    layer = LayerStats(0)
    layer.record_batch({1: 4}, tokens=4)
    for _ in range(3):
        layer.record_batch({2: 1}, tokens=4)
    assert layer.get_expert_stats(1).recent_rate == 1.0
    assert layer.get_expert_stats(2).recent_rate == 0.75
    assert layer.get_hot_experts() == [1, 2]
    for _ in range(100):
        layer.record_batch({2: 1}, tokens=4)
    assert layer.get_expert_stats(1).recent_rate == 0
    assert layer.get_hot_experts() == [2]


def test_rates_of_experts_that_come_late_count_the_tokens_before() -> None:
    layer = LayerStats(0)
    layer.record_batch({1: 1}, tokens=9)
    layer.record_batch({2: 1}, tokens=1)
    assert layer.get_expert_stats(2).activation_rate == 0.1


def test_7_tiles_are_numbered_row_by_row() -> None:
    tiles = TileCoordinator((256, 128), (64, 64))
    assert (tiles.num_row_tiles, tiles.num_col_tiles, tiles.num_tiles) == (4, 2, 8)
    assert tiles.tile_bounds(1) == (0, 64, 64, 128)
    assert tiles.all_tile_indices() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert tiles.tile_to_coords(5) == (2, 1)
    assert tiles.coords_to_tile(2, 1) == 5
    assert tiles.tiles_for_output_range(0, 64) == [0, 1]
    assert tiles.tiles_for_output_range(64, 128) == [2, 3]
    assert tiles.tiles_for_output_range(63, 65) == [0, 1, 2, 3]
    assert tiles.tiles_for_output_range(64, 64) == []


def test_7_the_last_tile_ends_where_the_matrix_does() -> None:
    tiles = TileCoordinator((100, 100))
    assert tiles.num_tiles == 4
    assert tiles.tile_bounds(3) == (64, 100, 64, 100)


sizes = st.integers(1, 40)


@given(st.tuples(sizes, sizes), st.tuples(sizes, sizes), st.data())
def test_tiles_partition_the_matrix(shape: tuple[int, int], tile: tuple[int, int], data: st.DataObject) -> None:
    tiles = TileCoordinator(shape, tile)
    owner = np.full(shape, -1)
    for index in tiles.all_tile_indices():
        row, row_end, column, column_end = tiles.tile_bounds(index)
        assert (owner[row:row_end, column:column_end] == -1).all()
        owner[row:row_end, column:column_end] = index
        assert tiles.coords_to_tile(*tiles.tile_to_coords(index)) == index
    assert (owner >= 0).all()
    start = data.draw(st.integers(0, shape[0]))
    end = data.draw(st.integers(start, shape[0]))
    assert tiles.tiles_for_output_range(start, end) == sorted(set(owner[start:end].ravel().tolist()))


def test_numbers_that_no_tile_has_are_refused() -> None:
    tiles = TileCoordinator((256, 128))
    with pytest.raises(InvalidInputError, match="tile_idx is 8, but tiles are numbered 0 to 7"):
        tiles.tile_bounds(8)
    with pytest.raises(InvalidInputError, match="col_tile is 2, but must be 0 to 1"):
        tiles.coords_to_tile(0, 2)
    with pytest.raises(InvalidInputError, match="0 to 257, but must lie within 0 to 256"):
        tiles.tiles_for_output_range(0, 257)
    with pytest.raises(InvalidInputError, match="weight_shape is"):
        TileCoordinator((0, 3))
