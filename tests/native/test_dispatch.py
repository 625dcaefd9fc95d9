"""Dispatch in native code (sections 1.1, 1.3 and 1.4 of the specification: docs/test-map.md): the counting sort is a
stable sort, rows are gathered bit for bit and summed in slot order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_moe import OnnxMoeError, _native, _native_rows

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


def gather(x: Array, indices: Array, threads: int = 1) -> Array:
    out = np.full((len(indices), *x.shape[1:]), 99, x.dtype)
    row_bytes = x.itemsize * x.shape[1]
    _native_rows.gather_rows(
        _native_rows.Gather(
            x.ctypes.data, len(x), row_bytes, indices.ctypes.data, len(indices), threads, out.ctypes.data
        )
    )
    return out


def scatter(y: torch.Tensor, positions: Array, weights: Array, threads: int = 1) -> torch.Tensor:
    """With `y` and the result in the middle of poisoned memory, which must stay as it is."""
    tokens, columns = len(positions), y.shape[1]
    memory = torch.full((tokens + 2, columns), float("nan"), dtype=y.dtype)
    name = str(y.dtype).removeprefix("torch.").replace("float32", "float")
    _native_rows.scatter_rows(
        _native_rows.Scatter(
            _native.ELEMENT_TYPES[name],
            y.data_ptr(),
            len(y),
            columns,
            positions.ctypes.data,
            weights.ctypes.data,
            tokens,
            positions.shape[1],
            threads,
            memory[1:].data_ptr(),
        )
    )
    assert memory[[0, -1]].isnan().all()
    return memory[1:-1]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "columns", "count"), [(1, 1, 1), (7, 5, 23), (3, 1000, 900), (5, 0, 4), (4, 3, 0)])
def test_rows_are_copied_bit_for_bit(rows: int, columns: int, count: int, threads: int) -> None:
    random = np.random.default_rng(rows)
    x = random.integers(-(2**31), 2**31, (rows, columns)).astype(np.int32)
    indices = random.integers(0, rows, count)
    np.testing.assert_array_equal(gather(x, indices, threads), x[indices])


def naive_scatter(y: torch.Tensor, positions: Array, weights: Array) -> Array:
    out = np.zeros((len(positions), y.shape[1]))
    for token in range(len(positions)):
        for slot in range(positions.shape[1]):
            for column in range(y.shape[1]):
                value = float(y[positions[token, slot], column])
                out[token, column] += float(weights[token, slot]) * value
    return out


@pytest.mark.parametrize("kernel", _native.kernel_names())
@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float32, 2.0**-24), (torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)]
)
@pytest.mark.parametrize(("tokens", "slots", "columns"), [(1, 1, 1), (9, 3, 17), (3, 8, 513), (0, 2, 4), (2, 5, 1030)])
def test_sums_equal_loops(tokens: int, slots: int, columns: int, dtype: torch.dtype, unit: float, kernel: str) -> None:
    """Odd sizes, on both sides of the columns that are summed at a time; a row that several slots take."""
    random = np.random.default_rng(columns)
    rows = max(tokens * slots - 1, 1)
    y = torch.from_numpy(random.standard_normal((rows, columns))).to(dtype)
    positions = random.integers(0, rows, (tokens, slots))
    weights = random.random((tokens, slots)).astype(np.float32)
    with _native.use_kernel(kernel):
        result = scatter(y, positions, weights)
        np.testing.assert_array_equal(result.double(), scatter(y, positions, weights, threads=4).double())
    # Each product and sum is rounded in float32, the result once more in its own type.
    terms = naive_scatter(y.abs(), positions, weights)
    error = (2 * slots * 2.0**-24 + unit) * terms + 2.0**-25  # float16 below its normal range: half of 2^-24
    assert (np.abs(result.double().numpy() - naive_scatter(y, positions, weights)) <= error).all()


def test_many_tasks_on_several_threads() -> None:
    random = np.random.default_rng(0)
    y = torch.from_numpy(random.standard_normal((6000, 256)).astype(np.float32))
    positions, weights = random.permutation(6000).reshape(3000, 2), random.random((3000, 2)).astype(np.float32)
    expected = (weights[..., None].astype(np.float64) * y.double().numpy()[positions]).sum(1)
    np.testing.assert_allclose(scatter(y, positions, weights, threads=4).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_positions_are_checked_before_anything_is_written(wrong: int) -> None:
    y, weights = torch.zeros(4, 3), np.ones((2, 1), np.float32)
    with pytest.raises(OnnxMoeError, match=f"positions holds {wrong} at 1, but rows are numbered 0 to 3"):
        scatter(y, np.array([[0], [wrong]]), weights)
    with pytest.raises(OnnxMoeError, match=f"indices holds {wrong} at 1, but rows are numbered 0 to 3"):
        gather(np.zeros((4, 3)), np.array([0, wrong]))
    with pytest.raises(OnnxMoeError, match="threads is 0: use at least 1"):
        gather(np.zeros((4, 3)), np.array([0]), threads=0)
