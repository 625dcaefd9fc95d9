"""Dispatch and load: values against naive loops, for numpy and Torch.

Section numbers are those of the specification of the systems that the project set out from (docs/test-map.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnx_moe import dispatch
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
    """Section 1.1: the counts that the originals assert; order by expert; order and inverse undo each other."""
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
    """Section 1.1: stable, offsets are prefix sums, no token is legal; int64 whatever the ids are."""
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
    """Section 1.1: what the originals did not check."""
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
    """Sections 1.2 and 6: token and slot of each assignment lie in the range of their expert; batch sizes."""
    ids = np.array([[0, 2], [1, 2], [0, 1]], np.int32)
    info = dispatch.group_tokens_by_expert_full(kind(ids), 3)
    assert info.total_assignments == 6
    assert [info.expert_batch_size(expert) for expert in range(3)] == [2, 2, 2]
    assert info.sorted_expert_indices is info.sorted_expert_slots
    for position in range(6):
        token, slot = int(info.sorted_token_indices[position]), int(info.sorted_expert_slots[position])
        first, last = info.expert_range(int(ids[token, slot]))
        assert first <= position < last
    with pytest.raises(InvalidInputError, match="expert_id is 3, but experts are numbered 0 to 2"):
        info.expert_batch_size(3)


#: Of each kind: dtype, and the relative error that a sum of up to 8 of its products may have (rounded once at the end,
#: and once at the start where the inputs are).
DTYPES: dict[str, dict[str, tuple[Any, float]]] = {
    "numpy": {"float32": (np.float32, 2e-6), "float16": (np.float16, 2e-3), "float64": (np.float64, 1e-14)},
    "torch": {"float32": (torch.float32, 2e-6), "float16": (torch.float16, 2e-3), "bfloat16": (torch.bfloat16, 1.6e-2)},
}
GRID = list(itertools.product((0, 1, 2, 7, 64, 513), (1, 2, 4, 8), (1, 8, 64, 128, 256)))


def affine_case(tokens: int, top_k: int, num_experts: int) -> dict[str, Any]:
    """Each expert a random affine map of its own; duplicates in a row and idle experts occur."""
    random = np.random.default_rng(tokens + 1000 * top_k + num_experts)
    case: dict[str, Any] = {
        "ids": draw_ids(tokens, top_k, num_experts, np.int64, tokens),
        "x": random.standard_normal((tokens, 5)),
        "probs": random.random((tokens, top_k)),
        "matrices": random.standard_normal((num_experts, 5, 3)),
        "shifts": random.standard_normal((num_experts, 3)),
    }
    every_expert = np.einsum("th,ehn->ten", case["x"], case["matrices"]) + case["shifts"]
    case["expected"] = np.zeros((tokens, 3))
    for token in range(tokens):
        for slot in range(top_k):
            case["expected"][token] += case["probs"][token, slot] * every_expert[token, case["ids"][token, slot]]
    case["every_expert"] = every_expert
    return case


@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), GRID)
@pytest.mark.parametrize("name", KINDS)
def test_distinct_affine_experts_equal_every_expert_on_every_token(
    name: str, tokens: int, top_k: int, num_experts: int
) -> None:
    """Section 3, the grid: gather, experts, scatter against a dense reference with all experts, masked; section 1.3:
    gathered rows are bit copies; section 1.4: no renormalisation, duplicates count twice.
    """
    case = affine_case(tokens, top_k, num_experts)
    make = KINDS[name]
    for dtype, error in DTYPES[name].values():
        info = dispatch.group_tokens_by_expert_full(make(case["ids"]), num_experts)
        x = cast(make(case["x"]), dtype)
        rows = dispatch.gather_for_experts(x, info)
        assert rows.dtype == dtype
        np.testing.assert_array_equal(wide(rows), wide(x)[np.asarray(info.sorted_token_indices)])
        tokens_of, slots_of = np.asarray(info.sorted_token_indices), np.asarray(info.sorted_expert_slots)
        outputs = case["every_expert"][tokens_of, case["ids"][tokens_of, slots_of]]
        combined = dispatch.scatter_expert_outputs(cast(make(outputs), dtype), make(case["probs"]), info)
        assert combined.dtype == dtype
        # Errors are relative to what is summed, not to a sum in which terms may cancel.
        scale = (case["probs"][..., None] * np.abs(case["every_expert"]).max(initial=1)).sum(1).max(initial=1)
        np.testing.assert_allclose(wide(combined), case["expected"], rtol=0, atol=error * scale)


@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), [point for point in GRID if point[1] <= point[2]])
@pytest.mark.parametrize("name", KINDS)
def test_the_dispatcher_equals_it_too(name: str, tokens: int, top_k: int, num_experts: int) -> None:
    """Section 3 for the dispatcher, which has nothing to do without tokens."""
    case = affine_case(tokens, top_k, num_experts)
    make = KINDS[name]
    dispatcher = dispatch.TokenDispatcher(num_experts, 5, 7, top_k=top_k)
    arguments = [make(case[key]) for key in ("x", "ids", "probs")]
    experts = lambda rows, e: rows @ make(case["matrices"][e]) + make(case["shifts"][e])  # noqa: E731
    if tokens == 0:
        with pytest.raises(InvalidInputError, match="no token is assigned"):
            dispatcher.dispatch(*arguments, experts)
        return
    np.testing.assert_allclose(
        np.asarray(dispatcher.dispatch(*arguments, experts)), case["expected"], rtol=1e-10, atol=1e-10
    )


def cast(array: Any, dtype: Any) -> Any:
    return array.astype(dtype) if isinstance(array, np.ndarray) else array.to(dtype)


def wide(array: Any) -> Any:
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double().numpy()


@pytest.mark.parametrize(("dtype", "small"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
@pytest.mark.parametrize("gradient", [False, True])
def test_sums_are_in_float32(dtype: torch.dtype, small: float, gradient: bool) -> None:
    """Section 1.4. Half a unit in the last place of 1, twice: summed in `dtype` each is rounded away, and 1 is left."""
    info = dispatch.group_tokens_by_expert_full(torch.tensor([[0, 1, 2]]), 3)
    y = torch.tensor([[1.0], [small], [small]], dtype=dtype, requires_grad=gradient)
    out = dispatch.scatter_expert_outputs(y, torch.ones(1, 3), info)
    assert out.dtype == dtype
    assert out.item() == 1 + 2 * small


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_flow_to_rows_and_weights(dtype: torch.dtype) -> None:
    """Training code: with experts that double, d out / d x[t] = 2 Σ probs[t], d out / d probs[t, s] = 2 Σ x[t]."""
    ids = torch.tensor([[0, 2], [2, 1], [0, 1]])
    x = torch.arange(12, dtype=dtype).reshape(3, 4).requires_grad_()
    probs = torch.tensor([[0.75, 0.25], [0.5, 0.25], [1.0, 2.0]], dtype=dtype, requires_grad=True)
    dispatch.TokenDispatcher(3, 4, 4).dispatch(x, ids, probs, lambda rows: 2 * rows).sum().backward()
    assert x.grad is not None
    assert probs.grad is not None
    np.testing.assert_allclose(x.grad.double().numpy(), [[2.0] * 4, [1.5] * 4, [6.0] * 4])
    np.testing.assert_allclose(probs.grad.double().numpy(), [[12.0] * 2, [44.0] * 2, [76.0] * 2])


def test_views_and_orders_of_memory(kind: Callable[[Any], Any]) -> None:
    """Strided rows and columns, and weights in another order of memory."""
    random = np.random.default_rng(0)
    info = dispatch.group_tokens_by_expert_full(kind(draw_ids(6, 2, 3)), 3)
    x = kind(random.standard_normal((12, 10)).astype(np.float32))[::2, 1::3]
    rows = dispatch.gather_for_experts(x, info)
    np.testing.assert_array_equal(np.asarray(rows), np.asarray(x)[np.asarray(info.sorted_token_indices)])
    probs = kind(random.random((2, 6)).astype(np.float32)).T
    out = dispatch.scatter_expert_outputs(rows, probs, info)
    np.testing.assert_allclose(np.asarray(out), np.asarray(x) * np.asarray(probs).sum(1)[:, None], rtol=1e-6)


def test_rows_that_do_not_fit() -> None:
    info = dispatch.group_tokens_by_expert_full(np.array([[0, 1], [1, 0]]), 2)
    with pytest.raises(InvalidInputError, match=r"activations has shape \[3, 4\], but must be \[2"):
        dispatch.gather_for_experts(np.zeros((3, 4)), info)
    with pytest.raises(InvalidInputError, match=r"expert_outputs has shape \[2, 4\], but must be \[4"):
        dispatch.scatter_expert_outputs(np.zeros((2, 4)), np.zeros((2, 2)), info)
    with pytest.raises(InvalidInputError, match=r"expert_probs has shape \[2, 1\], but must be \[2, 2\]"):
        dispatch.scatter_expert_outputs(np.zeros((4, 4)), np.zeros((2, 1)), info)
    for integers in (np.zeros((4, 4), np.int32), torch.zeros((4, 4), dtype=torch.int64)):
        with pytest.raises(InvalidInputError, match=r"expert_outputs is int\d\d, but must be floats"):
            dispatch.scatter_expert_outputs(integers, np.zeros((2, 2)), info)


def test_load(kind: Callable[[Any], Any]) -> None:
    """Section 2: counts, of duplicates in a row too."""
    load = dispatch.compute_expert_load
    assert np.asarray(load(kind(np.array([[0, 2], [1, 2], [0, 1]])), 3)).tolist() == [2, 2, 2]
    assert np.asarray(load(kind(np.array([[0, 0], [0, 1], [0, 0]])), 3)).tolist() == [5, 1, 0]
    with pytest.raises(InvalidInputError, match="holds 3 in row 0, slot 1, but experts are numbered 0 to 2"):
        load(kind(np.array([[0, 3]])), 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_unsigned_ids(kind: Callable[[Any], Any], dtype: Any) -> None:
    """All integers will do, and a wrong one is named as it is."""
    ids = np.array([[0, 2], [1, 2]], dtype)
    assert np.asarray(dispatch.compute_expert_load(kind(ids), 3)).tolist() == [1, 1, 2]
    assert np.diff(np.asarray(dispatch.group_tokens_by_expert(kind(ids), 3)[1])).tolist() == [1, 1, 2]
    largest = int(np.iinfo(dtype).max)
    ids[1, 0] = largest
    for function in (dispatch.compute_expert_load, dispatch.group_tokens_by_expert):
        with pytest.raises(OnnxMoeError, match=f"holds {largest} in row 1, slot 0"):
            function(kind(ids), 3)


def test_load_balancing_loss(kind: Callable[[Any], Any]) -> None:
    """Section 2: 1 at balance for any k, E when all is on one expert, the formula, any order of tokens."""
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


def test_loss_of_skewed_routing(kind: Callable[[Any], Any]) -> None:
    """Section 2: all choices on expert 0, to which P gives about .86: above 1, and by the formula 4 · .86 …."""
    logits = np.zeros((8, 4), np.float32)
    logits[:, 0] = np.log(0.86 / 0.14 * 3)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ids = np.zeros((8, 2), np.int64)
    value = float(dispatch.compute_load_balancing_loss(kind(probs), kind(ids), 4))
    assert value == pytest.approx(4 * 0.86, rel=1e-5)
    assert value > 1


@pytest.mark.parametrize("top_k", [1, 4])
def test_uniform_probabilities_hide_a_collapse(kind: Callable[[Any], Any], top_k: int) -> None:
    """Section 2, the trap: with uniform P the value is 1 whatever f is. The load shows what the value does not."""
    ids = np.zeros((16, top_k), np.int64)
    uniform = kind(np.full((16, 8), 1 / 8, np.float32))
    assert float(dispatch.compute_load_balancing_loss(uniform, kind(ids), 8)) == pytest.approx(1, abs=1e-6)
    assert np.asarray(dispatch.compute_expert_load(kind(ids), 8)).tolist() == [16 * top_k] + [0] * 7


def test_loss_of_many_float16_rows(kind: Callable[[Any], Any]) -> None:
    """Section 2: float16 probabilities of 1e5 tokens. Their sum, 90,000, is infinite in float16."""
    probs = np.full((100_000, 2), [0.9, 0.1], np.float16)
    ids = np.zeros((100_000, 1), np.int64)
    value = dispatch.compute_load_balancing_loss(kind(probs), kind(ids), 2)
    assert float(value) == pytest.approx(2 * float(np.float16(0.9)), rel=1e-6)
    assert value.dtype in (np.float32, torch.float32)


def test_loss_has_a_gradient() -> None:
    probs = torch.full((4, 2), 0.5, requires_grad=True)
    dispatch.compute_load_balancing_loss(probs, torch.tensor([[0], [0], [0], [1]]), 2).backward()
    assert probs.grad is not None
    np.testing.assert_allclose(probs.grad.numpy(), [[2 * 0.75 / 4, 2 * 0.25 / 4]] * 4)


def test_loss_takes_ids_and_probabilities_of_two_kinds() -> None:
    probs, ids = np.full((4, 2), 0.5, np.float32), np.array([[0], [0], [1], [1]])
    for pair in ((torch.from_numpy(probs), ids), (probs, torch.from_numpy(ids))):
        assert float(dispatch.compute_load_balancing_loss(*pair, 2)) == 1.0


def test_loss_of_what_does_not_fit() -> None:
    with pytest.raises(InvalidInputError, match=r"router_probs has shape \[4, 3\], but must be \[4, 2\]"):
        dispatch.compute_load_balancing_loss(np.zeros((4, 3)), np.zeros((4, 1), np.int64), 2)
    with pytest.raises(InvalidInputError, match=r"router_probs holds -1.0, but probabilities are not negative"):
        dispatch.compute_load_balancing_loss(torch.tensor([[2.0, -1.0]]), torch.tensor([[0]]), 2)
    with pytest.raises(InvalidInputError, match=r"router_probs has shape \[\]"):
        dispatch.compute_load_balancing_loss([[0.5, 0.5]], torch.tensor([[0]]), 2)
    with pytest.raises(InvalidInputError, match="no token"):
        dispatch.compute_load_balancing_loss(np.zeros((0, 2)), np.zeros((0, 1), np.int64), 2)
