"""Dispatch: the native counting sort is a stable sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_moe import OnnxMoeError, _native

Array = NDArray[Any]


def group(expert_ids: Array, num_experts: int) -> tuple[Array, Array, Array]:
    flat = np.ascontiguousarray(expert_ids.reshape(-1), np.int32)
    order, inverse = np.full(flat.size, -1, np.int64), np.full(flat.size, -1, np.int64)
    offsets = np.full(num_experts + 1, -1, np.int64)
    pointers = (array.ctypes.data for array in (order, offsets, inverse))
    _native.check(_native.library().onnx_moe_group_tokens(flat.ctypes.data, 4, flat.size, 1, num_experts, *pointers))
    return order, offsets, inverse


@given(st.integers(1, 300).flatmap(lambda e: st.tuples(st.just(e), st.lists(st.integers(0, e - 1), max_size=600))))
def test_equals_a_stable_sort(case: tuple[int, list[int]]) -> None:
    num_experts, ids = case
    expert_ids = np.array(ids, np.int32)
    order, offsets, inverse = group(expert_ids, num_experts)
    np.testing.assert_array_equal(order, np.argsort(expert_ids, kind="stable"))
    counts = np.bincount(expert_ids, minlength=num_experts)
    np.testing.assert_array_equal(offsets, np.concatenate([[0], np.cumsum(counts)]))
    np.testing.assert_array_equal(order[inverse], np.arange(len(ids)))


def test_later_tokens_do_not_move_earlier_ones() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 16, (64, 4)), random.integers(0, 16, (33, 4))
    order, _, _ = group(np.concatenate([first, second]), 16)
    alone, _, _ = group(first, 16)
    np.testing.assert_array_equal(order[order < first.size], alone)


@pytest.mark.parametrize("expert", [-1, 8, 2**31 - 1, -(2**31)])
def test_an_id_out_of_range_is_named(expert: int) -> None:
    with pytest.raises(OnnxMoeError, match=rf"expert_ids holds {expert} in row 3.*experts are numbered 0 to 7"):
        group(np.array([0, 7, 1, expert], np.int32), 8)
