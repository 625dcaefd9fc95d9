"""Dispatch, load and the dispatcher: values against naive loops, for numpy and Torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnx_moe import dispatch
from onnx_moe.dispatch import token_dispatcher
from onnx_moe.dispatch.grouping import group_on_device
from onnx_moe.errors import InvalidInputError, OnnxMoeError

KINDS: dict[str, Callable[[Any], Any]] = {"numpy": np.asarray, "torch": lambda array: torch.from_numpy(np.array(array))}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Makes an array of one of the kinds."""
    return KINDS[request.param]


def draw_ids(tokens: int, top_k: int, num_experts: int, dtype: Any = np.int32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, num_experts, (tokens, top_k)).astype(dtype)


@pytest.mark.parametrize(
    ("ids", "num_experts", "counts"),
    [
        ([[0, 2], [1, 2], [0, 1]], 3, [2, 2, 2]),
        ([[0, 1], [0, 2], [0, 1], [0, 2]], 3, [4, 2, 2]),
        ([[0], [2]], 4, [1, 0, 1, 0]),
        ([[0], [1], [0], [1]], 2, [2, 2]),
    ],
)
def test_groups_of_small_cases(kind: Callable[[Any], Any], ids: Any, num_experts: int, counts: list[int]) -> None:
    order, offsets, inverse = dispatch.group_tokens_by_expert(kind(np.array(ids, np.int32)), num_experts)
    assert np.diff(np.asarray(offsets)).tolist() == counts
    flat = np.array(ids).reshape(-1)
    assert (np.diff(flat[np.asarray(order)]) >= 0).all()
    assert np.asarray(order)[np.asarray(inverse)].tolist() == list(range(flat.size))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint16])
@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), [(0, 2, 4), (1, 1, 1), (128, 4, 16), (513, 8, 100)])
def test_equals_a_stable_sort(
    kind: Callable[[Any], Any], dtype: Any, tokens: int, top_k: int, num_experts: int
) -> None:
    ids = draw_ids(tokens, top_k, num_experts, dtype)
    order, offsets, inverse = dispatch.group_tokens_by_expert(kind(ids), num_experts)
    expected = np.argsort(ids.reshape(-1), kind="stable")
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(inverse, np.argsort(expected))
    np.testing.assert_array_equal(offsets, np.searchsorted(np.sort(ids.reshape(-1)), np.arange(num_experts + 1)))
    for array in (order, offsets, inverse):
        assert array.dtype == (np.int64 if isinstance(array, np.ndarray) else torch.int64)


@given(st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), max_size=50))
def test_operators_of_torch_give_the_same(rows: list[list[int]]) -> None:
    ids = torch.tensor(rows, dtype=torch.int32).reshape(-1, 3)
    for ours, theirs in zip(group_on_device(ids, 7), dispatch.group_tokens_by_expert(ids, 7), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("expert", [-1, 8])
@pytest.mark.parametrize("group", [dispatch.group_tokens_by_expert, group_on_device])
def test_an_id_out_of_range_names_row_and_slot(group: Callable[..., Any], expert: int) -> None:
    ids = torch.tensor([[0, 1], [2, 7], [3, expert]])
    with pytest.raises(
        OnnxMoeError, match=rf"expert_ids holds {expert} in row 2, slot 1, but experts are numbered 0 to 7"
    ):
        group(ids, 8)


@pytest.mark.parametrize(
    ("ids", "num_experts", "message"),
    [
        (np.zeros(3, np.int32), 4, r"int32 of shape \[3\], but must be integers \[T, k\]"),
        (np.zeros((3, 2)), 4, r"float64 of shape \[3, 2\], but must be integers"),
        (np.zeros((3, 0), np.int32), 4, r"k must be at least 1"),
        (np.zeros((3, 2), np.int32), 0, r"num_experts is 0"),
        ([[1, 2]], 4, r"expert_ids is list"),
        (torch.zeros(2, 2), 4, r"float32 of shape \[2, 2\]"),
    ],
)
def test_what_are_no_ids(ids: Any, num_experts: int, message: str) -> None:
    for function in (dispatch.group_tokens_by_expert, dispatch.compute_expert_load):
        with pytest.raises(InvalidInputError, match=message):
            function(ids, num_experts)


def test_info(kind: Callable[[Any], Any]) -> None:
    ids = np.array([[0, 2], [1, 2], [0, 1]], np.int32)
    info = dispatch.group_tokens_by_expert_full(kind(ids), 3)
    assert info.total_assignments == 6
    assert [info.expert_batch_size(expert) for expert in range(3)] == [2, 2, 2]
    assert info.sorted_expert_indices is info.sorted_expert_slots
    for position in range(6):
        token, slot = int(info.sorted_token_indices[position]), int(info.sorted_expert_slots[position])
        first, last = info.expert_range(int(ids[token, slot]))
        assert first <= position < last
    with pytest.raises(InvalidInputError, match="expert is 3, but experts are numbered 0 to 2"):
        info.expert_batch_size(3)


DTYPES = {"numpy": (np.float32, np.float16, np.float64), "torch": (torch.float32, torch.float16, torch.bfloat16)}


@pytest.mark.parametrize(
    ("tokens", "top_k", "num_experts"), [(0, 2, 4), (1, 1, 1), (7, 2, 8), (64, 8, 128), (513, 4, 8)]
)
@pytest.mark.parametrize("name", KINDS)
def test_distinct_affine_experts_equal_a_dense_loop(name: str, tokens: int, top_k: int, num_experts: int) -> None:
    """Each expert a random affine map of its own; duplicates in a row and idle experts occur."""
    random = np.random.default_rng(tokens)
    make = KINDS[name]
    ids = draw_ids(tokens, top_k, num_experts, np.int64, tokens)
    x = random.standard_normal((tokens, 5)).astype(np.float32)
    probs = random.random((tokens, top_k)).astype(np.float32)
    matrices = random.standard_normal((num_experts, 5, 3)).astype(np.float32)
    shifts = random.standard_normal((num_experts, 3)).astype(np.float32)
    expected = np.zeros((tokens, 3))
    for token in range(tokens):
        for slot in range(top_k):
            expert = ids[token, slot]
            expected[token] += probs[token, slot] * (x[token].astype(np.float64) @ matrices[expert] + shifts[expert])

    info = dispatch.group_tokens_by_expert_full(make(ids), num_experts)
    rows = dispatch.gather_for_experts(make(x), info)
    np.testing.assert_array_equal(np.asarray(rows), x[np.asarray(info.sorted_token_indices)])
    owner = np.repeat(np.arange(num_experts), np.diff(np.asarray(info.expert_offsets)))
    outputs = np.einsum("ah,ahn->an", np.asarray(rows), matrices[owner]) + shifts[owner]
    combined = dispatch.scatter_expert_outputs(make(outputs.astype(np.float32)), make(probs), info)
    np.testing.assert_allclose(np.asarray(combined), expected, rtol=1e-5, atol=1e-5)
    if tokens:
        result = (
            dispatch.TokenDispatcher(num_experts, 5, 7, top_k=min(top_k, num_experts)).dispatch(
                make(x), make(ids), make(probs), lambda part, e: part @ make(matrices[e]) + make(shifts[e])
            )
            if top_k <= num_experts
            else combined
        )
        np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES["torch"])
def test_torch_types_are_kept_and_summed_in_float32(dtype: torch.dtype) -> None:
    info = dispatch.group_tokens_by_expert_full(torch.tensor([[0, 1, 2]]), 3)
    y = torch.tensor([[1.0], [2.0**-9], [2.0**-9]], dtype=dtype)
    out = dispatch.scatter_expert_outputs(y, torch.ones(1, 3), info)
    assert out.dtype == dtype
    assert out.item() == torch.tensor(1 + 2.0**-8, dtype=torch.float32).to(dtype).item()
    x = torch.randn(1, 4).to(dtype)
    assert dispatch.gather_for_experts(x, info).dtype == dtype


def test_rows_that_do_not_fit() -> None:
    info = dispatch.group_tokens_by_expert_full(np.array([[0, 1], [1, 0]]), 2)
    with pytest.raises(InvalidInputError, match=r"x has shape \[3, 4\], but must be \[2"):
        dispatch.gather_for_experts(np.zeros((3, 4)), info)
    with pytest.raises(InvalidInputError, match=r"y has shape \[2, 4\], but must be \[4"):
        dispatch.scatter_expert_outputs(np.zeros((2, 4)), np.zeros((2, 2)), info)
    with pytest.raises(InvalidInputError, match=r"probs has shape \[2, 1\], but must be \[2, 2\]"):
        dispatch.scatter_expert_outputs(np.zeros((4, 4)), np.zeros((2, 1)), info)


def test_load(kind: Callable[[Any], Any]) -> None:
    load = dispatch.compute_expert_load
    assert np.asarray(load(kind(np.array([[0, 2], [1, 2], [0, 1]])), 3)).tolist() == [2, 2, 2]
    assert np.asarray(load(kind(np.array([[0, 0], [0, 1], [0, 0]])), 3)).tolist() == [5, 1, 0]
    with pytest.raises(InvalidInputError, match="holds 0 to 3, but experts are numbered 0 to 2"):
        load(kind(np.array([[0, 3]])), 3)


def test_load_balancing_loss(kind: Callable[[Any], Any]) -> None:
    loss = dispatch.compute_load_balancing_loss
    for top_k in (1, 2):
        ids = np.stack([(np.arange(8) + slot) % 8 for slot in range(top_k)], axis=1)
        assert float(loss(kind(np.full((8, 8), 1 / 8, np.float32)), kind(ids), 8)) == pytest.approx(1, abs=1e-6)
    collapsed = np.zeros((16, 8), np.float32)
    collapsed[:, 3] = 1
    ids = np.full((16, 1), 3)
    assert float(loss(kind(collapsed), kind(ids), 8)) == pytest.approx(8, abs=1e-5)
    random = np.random.default_rng(0)
    probs = random.dirichlet(np.ones(8), 100).astype(np.float32)
    ids = draw_ids(100, 2, 8, np.int64)
    fraction = np.bincount(ids.reshape(-1), minlength=8) / 200
    expected = 8 * (fraction * probs.astype(np.float64).mean(0)).sum()
    assert float(loss(kind(probs), kind(ids), 8)) == pytest.approx(expected, rel=1e-6)
    shuffled = random.permutation(100)
    assert float(loss(kind(probs[shuffled]), kind(ids[shuffled]), 8)) == pytest.approx(expected, rel=1e-6)


def test_loss_of_many_float16_rows(kind: Callable[[Any], Any]) -> None:
    """A mean accumulated in float16 would stop at 2048 terms."""
    probs = np.full((100_000, 2), 0.5, np.float16)
    ids = np.zeros((100_000, 1), np.int64)
    assert float(dispatch.compute_load_balancing_loss(kind(probs), kind(ids), 2)) == pytest.approx(1, abs=1e-4)


def test_loss_has_a_gradient() -> None:
    probs = torch.full((4, 2), 0.5, requires_grad=True)
    dispatch.compute_load_balancing_loss(probs, torch.tensor([[0], [0], [0], [1]]), 2).backward()
    assert probs.grad is not None
    np.testing.assert_allclose(probs.grad.numpy(), [[2 * 0.75 / 4, 2 * 0.25 / 4]] * 4)


def test_loss_of_what_does_not_fit() -> None:
    with pytest.raises(InvalidInputError, match=r"router_probs has shape \[4, 3\], but must be \[4, 2\]"):
        dispatch.compute_load_balancing_loss(np.zeros((4, 3)), np.zeros((4, 1), np.int64), 2)
    with pytest.raises(InvalidInputError, match="no token"):
        dispatch.compute_load_balancing_loss(np.zeros((0, 2)), np.zeros((0, 1), np.int64), 2)


def test_both_forms_of_the_dispatcher_s_grouping(kind: Callable[[Any], Any]) -> None:
    ids = kind(np.array([[0, 2], [1, 2], [0, 1]]))
    x = kind(np.arange(12, dtype=np.float32).reshape(3, 4))
    info = token_dispatcher.group_tokens_by_expert(ids, 3)
    for routing in ((ids, None), (ids, None, 3), {"expert_ids": ids}, {"indices": ids, "num_experts": 3}):
        rows, same = token_dispatcher.group_tokens_by_expert(x, routing)
        np.testing.assert_array_equal(np.asarray(rows), np.asarray(dispatch.gather_for_experts(x, info)))
        assert same.num_experts == 3
    with pytest.raises(InvalidInputError, match="needs 'expert_ids'"):
        token_dispatcher.group_tokens_by_expert(x, {"ids": ids})
    with pytest.raises(InvalidInputError, match="routing is a list"):
        token_dispatcher.group_tokens_by_expert(x, [ids])


def test_rows_of_one_expert(kind: Callable[[Any], Any]) -> None:
    x = kind(np.arange(32, dtype=np.float16).reshape(4, 8))
    info = dispatch.group_tokens_by_expert_full(kind(np.array([[0, 1], [0, 3], [1, 0], [3, 1]])), 4)
    np.testing.assert_array_equal(np.asarray(dispatch.gather_tokens_for_expert(x, info, 1)), np.asarray(x)[[0, 2, 3]])
    idle = dispatch.gather_tokens_for_expert(x, info, 2)
    assert tuple(idle.shape) == (0, 8)
    assert idle.dtype == x.dtype


def test_calling_experts(kind: Callable[[Any], Any]) -> None:
    info = dispatch.group_tokens_by_expert_full(kind(np.array([[0, 1], [3, 1]])), 4)
    x = kind(np.ones((2, 3), np.float32))
    by_id = dispatch.dispatch_to_experts(x, info, lambda rows, expert: rows * (expert + 1))
    assert np.asarray(by_id)[:, 0].tolist() == [1, 2, 2, 4]
    each = [lambda rows, factor=expert + 1: rows * factor for expert in range(4)]
    np.testing.assert_array_equal(np.asarray(dispatch.dispatch_to_experts(x, info, each)), np.asarray(by_id))
    assert np.asarray(dispatch.dispatch_to_experts(x, info, lambda rows: rows + 1)).tolist() == [[2.0] * 3] * 4
    with pytest.raises(InvalidInputError, match="3 experts were given, but ids go to 3"):
        dispatch.dispatch_to_experts(x, info, each[:3])
    with pytest.raises(InvalidInputError, match="expert 0 made 2 rows of 1"):
        dispatch.dispatch_to_experts(x, info, lambda rows, expert: kind(np.zeros((2, 3), np.float32)))
    nothing = dispatch.group_tokens_by_expert_full(kind(np.zeros((0, 2), np.int32)), 4)
    with pytest.raises(InvalidInputError, match="no token is assigned"):
        dispatch.dispatch_to_experts(x[:0], nothing, each)


def test_an_expert_s_own_type_error_is_not_hidden() -> None:
    info = dispatch.group_tokens_by_expert_full(np.array([[0]]), 1)

    def broken(rows: Any, expert: int) -> Any:
        raise TypeError("the expert's own")

    with pytest.raises(TypeError, match="the expert's own"):
        dispatch.dispatch_to_experts(np.zeros((1, 2)), info, broken)


def test_combining(kind: Callable[[Any], Any]) -> None:
    info = dispatch.group_tokens_by_expert_full(kind(np.array([[0, 1], [1, 0]])), 2)
    basis = kind(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32))
    out = dispatch.combine_expert_outputs(basis, kind(np.array([[0.7, 0.3], [0.6, 0.4]], np.float32)), info)
    np.testing.assert_allclose(np.asarray(out), [[0.7, 0.3], [0.4, 0.6]], rtol=1e-6)


def test_dispatcher(kind: Callable[[Any], Any]) -> None:
    dispatcher = dispatch.TokenDispatcher(4, 3, 8, enable_stats=True)
    ids = kind(np.array([[0, 1], [2, 3], [0, 2], [1, 3]]))
    x, probs = kind(np.ones((4, 3), np.float32)), kind(np.full((4, 2), 0.5, np.float32))
    out = dispatcher.dispatch_with_shared_expert(
        x, ids, probs, lambda rows, expert: rows, lambda rows, expert: rows * (2 if expert == -1 else 0), 0.5
    )
    assert np.asarray(out).tolist() == [[2.0] * 3] * 4
    assert dispatcher.last_dispatch_info is not None
    assert dispatcher.last_dispatch_info.num_tokens == 4
    stats = dispatcher.last_stats
    assert stats is not None
    assert (stats.active_experts, stats.max_expert_load, stats.min_expert_load, stats.load_imbalance) == (4, 2, 2, 0.0)
    dispatcher.dispatch(x, kind(np.array([[0, 1]] * 4)), probs, lambda rows, expert: rows)
    stats = dispatcher.last_stats
    assert stats is not None
    assert (stats.active_experts, stats.max_expert_load, stats.load_imbalance) == (2, 4, 0.0)
    assert stats.load_imbalance_all == pytest.approx(1.0)  # two of four experts have 4, two have none
    assert dispatch.TokenDispatcher(4, 3, 8).last_stats is None


def test_a_dispatcher_of_other_sizes() -> None:
    with pytest.raises(InvalidInputError, match="top_k is 5, but there are 4 experts"):
        dispatch.TokenDispatcher(4, 3, 8, top_k=5)
    with pytest.raises(InvalidInputError, match="hidden_dim is 0"):
        dispatch.TokenDispatcher(4, 0, 8)
    dispatcher = dispatch.TokenDispatcher(4, 3, 8)
    ids, probs = np.array([[0, 1]]), np.ones((1, 2))
    with pytest.raises(InvalidInputError, match=r"x has shape \[1, 4\], but must be \[T, 3\]"):
        dispatcher.dispatch(np.ones((1, 4)), ids, probs, lambda rows: rows)
    with pytest.raises(InvalidInputError, match=r"expert_ids has shape \[1, 1\], but must be \[T, 2\]"):
        dispatcher.dispatch(np.ones((1, 3)), ids[:, :1], probs, lambda rows: rows)
