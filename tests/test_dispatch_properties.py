"""Properties of grouping, gathering and scattering that hold for any routing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_moe import dispatch


def rows_of(ids: Any, num_experts: int) -> list[list[int]]:
    """Flat indices of each expert, in order."""
    order, offsets, _ = dispatch.group_tokens_by_expert(ids, num_experts)
    return [order[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())]


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    num_experts, top_k = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    parts = [
        np.array(
            draw(
                st.lists(
                    st.lists(st.integers(0, num_experts - 1), min_size=top_k, max_size=top_k), min_size=0, max_size=12
                )
            ),
            np.int32,
        ).reshape(-1, top_k)
        for _ in range(2)
    ]
    return parts[0], parts[1], num_experts


@settings(deadline=None)
@given(batches())
def test_batches_one_after_another_are_grouped_as_one(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    first, second, num_experts = case
    together = rows_of(np.concatenate([first, second]), num_experts)
    moved = [[index + first.size for index in rows] for rows in rows_of(second, num_experts)]
    assert together == [a + b for a, b in zip(rows_of(first, num_experts), moved, strict=True)]


@settings(deadline=None)
@given(batches(), st.integers(0, 2**32 - 1))
def test_scattering_what_was_gathered_weighs_each_token(case: tuple[np.ndarray, np.ndarray, int], seed: int) -> None:
    """Experts that change nothing: a token times the sum of its weights, whatever the routing."""
    ids, _, num_experts = case
    random = np.random.default_rng(seed)
    x = random.standard_normal((len(ids), 3)).astype(np.float32)
    weights = random.random(ids.shape).astype(np.float32)
    info = dispatch.group_tokens_by_expert_full(ids, num_experts)
    result = dispatch.scatter_expert_outputs(dispatch.gather_for_experts(x, info), weights, info)
    np.testing.assert_allclose(result, x * weights.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "top_k", "num_experts"),
    list(itertools.product((0, 1, 2, 7, 64, 513), (1, 2, 4, 8), (1, 8, 64, 128, 256))),
)
def test_the_order_is_a_stable_permutation_by_expert(tokens: int, top_k: int, num_experts: int) -> None:
    ids = np.random.default_rng(tokens).integers(0, num_experts, (tokens, top_k)).astype(np.int32)
    order, offsets, inverse = dispatch.group_tokens_by_expert(ids, num_experts)
    assert (np.sort(order) == np.arange(ids.size)).all()
    assert (order[inverse] == np.arange(ids.size)).all()
    assert offsets[0] == 0
    assert offsets[-1] == ids.size
    for expert, rows in enumerate(rows_of(ids, num_experts)):
        assert rows == np.flatnonzero(ids.reshape(-1) == expert).tolist()
