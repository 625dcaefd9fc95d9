"""The dispatcher that calls the experts (section 6 of the specification: docs/test-map.md): values, forms of arguments,
statistics, errors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnx_moe import dispatch
from onnx_moe.dispatch import token_dispatcher
from onnx_moe.errors import InvalidInputError

KINDS: dict[str, Callable[[Any], Any]] = {"numpy": np.asarray, "torch": lambda array: torch.from_numpy(np.array(array))}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Makes an array of one of the kinds."""
    return KINDS[request.param]


def test_every_form_of_grouping(kind: Callable[[Any], Any]) -> None:
    """Section 6: (ids, num_experts), and rows with routing in each form, also the mapping that the originals could not
    take; a missing num_experts is the largest id plus 1.
    """
    ids = kind(np.array([[0, 2], [1, 2], [0, 1]]))
    x = kind(np.arange(12, dtype=np.float32).reshape(3, 4))
    info = token_dispatcher.group_tokens_by_expert(ids, np.int64(3))
    assert [info.expert_batch_size(expert) for expert in range(3)] == [2, 2, 2]
    assert info.total_assignments == 6
    probs = kind(np.full((3, 2), 0.5, np.float32))
    forms = (
        ids, (ids,), (ids, probs), [ids, probs], (ids, probs, 3), [ids, None, 3], {"expert_ids": ids},
        {"indices": ids, "num_experts": 3},
    )  # fmt: skip
    for routing in forms:
        rows, same = token_dispatcher.group_tokens_by_expert(x, routing)
        np.testing.assert_array_equal(np.asarray(rows), np.asarray(dispatch.gather_for_experts(x, info)))
        assert same.num_experts == 3


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ({"ids": 1}, r"has the keys \['ids'\]: it needs 'expert_ids' \(or 'indices'\)"),
        ([[0, 1], [1, 0]], "routing is a list of 2: pass num_experts, expert_ids,"),
        ((), "routing is a tuple of 0"),
        ({"expert_ids": [[0, 1]]}, r"expert_ids is list of shape \[\]"),
        ("both", "expert_ids is str"),
        (np.zeros((2, 2)), "expert_ids is float64"),
    ],
)
def test_other_forms_are_named(routing: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        token_dispatcher.group_tokens_by_expert(np.zeros((2, 4)), routing)


def test_rows_of_one_expert(kind: Callable[[Any], Any]) -> None:
    """Section 6: [n, H] rows of the same dtype; [0, H] for an idle expert."""
    x = kind(np.arange(32, dtype=np.float16).reshape(4, 8))
    info = dispatch.group_tokens_by_expert_full(kind(np.array([[0, 1], [0, 3], [1, 0], [3, 1]])), 4)
    np.testing.assert_array_equal(np.asarray(dispatch.gather_tokens_for_expert(x, info, 1)), np.asarray(x)[[0, 2, 3]])
    idle = dispatch.gather_tokens_for_expert(x, info, 2)
    assert tuple(idle.shape) == (0, 8)
    assert idle.dtype == x.dtype
    with pytest.raises(InvalidInputError, match="expert_id is 4, but experts are numbered 0 to 3"):
        dispatch.gather_tokens_for_expert(x, info, 4)


def test_calling_experts(kind: Callable[[Any], Any]) -> None:
    """Section 6: sorted order, idle experts are not called, both forms of arguments, lists of at least E experts."""
    info = dispatch.group_tokens_by_expert_full(kind(np.array([[0, 1], [3, 1]])), 4)
    x = kind(np.ones((2, 3), np.float32))
    called = []

    def by_id(rows: Any, expert: int) -> Any:
        called.append(expert)
        return rows * (expert + 1)

    outputs = dispatch.dispatch_to_experts(x, info, by_id)
    assert np.asarray(outputs)[:, 0].tolist() == [1, 2, 2, 4]
    assert called == [0, 1, 3]
    each = [lambda rows, factor=expert + 1: rows * factor for expert in range(4)]
    with_ids = [lambda rows, expert: rows * (expert + 1)] * 5
    grouped = (dispatch.gather_for_experts(x, info), info)
    for experts in (each, tuple(each), with_ids):
        np.testing.assert_array_equal(np.asarray(dispatch.dispatch_to_experts(x, info, experts)), np.asarray(outputs))
        np.testing.assert_array_equal(np.asarray(dispatch.dispatch_to_experts(grouped, experts)), np.asarray(outputs))
    assert np.asarray(dispatch.dispatch_to_experts(x, info, lambda rows: rows + 1)).tolist() == [[2.0] * 3] * 4


def test_experts_that_cannot_be_called(kind: Callable[[Any], Any]) -> None:
    info = dispatch.group_tokens_by_expert_full(kind(np.array([[0, 1], [3, 1]])), 4)
    x = kind(np.ones((2, 3), np.float32))
    grouped = (dispatch.gather_for_experts(x, info), info)
    identity = [lambda rows: rows] * 4
    for arguments, message in (
        ((x, info, identity[:3]), "3 experts were given, but ids go to 3"),
        ((x, info, lambda rows: kind(np.zeros((5, 3), np.float32))), "expert 0 made 5 rows of 1"),
        ((x, info, 5), "an expert is a int: pass a function or module"),
        ((x, info, [5] * 4), "an expert is a int: pass a function or module"),
        ((x, info), "dispatch_to_experts got .*DispatchInfo, NoneType: pass"),
        ((grouped, identity, identity), "dispatch_to_experts got tuple, list, list"),
        ((grouped, 5), "an expert is a int"),
        (((x, info), identity), r"the grouped rows has shape \[2, 3\], but must be \[4, …\]"),
        ((x[:1], info, identity), r"activations has shape \[1, 3\], but must be \[2"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            dispatch.dispatch_to_experts(*arguments)
    nothing = dispatch.group_tokens_by_expert_full(kind(np.zeros((0, 2), np.int32)), 4)
    with pytest.raises(InvalidInputError, match="no token is assigned"):
        dispatch.dispatch_to_experts(x[:0], nothing, identity)


class TestModules:
    """The forms in which Torch code has experts."""

    @pytest.fixture
    def case(self) -> dict[str, Any]:
        torch.manual_seed(0)
        return {
            "x": torch.randn(6, 4),
            "ids": torch.stack([torch.randperm(3)[:2] for _ in range(6)]),
            "probs": torch.rand(6, 2),
            "dispatcher": dispatch.TokenDispatcher(3, 4, 8),
        }

    @staticmethod
    def run(case: dict[str, Any], experts: Any) -> torch.Tensor:
        return case["dispatcher"].dispatch(case["x"], case["ids"], case["probs"], experts)

    def expected(self, case: dict[str, Any], each: list[Callable[..., Any]]) -> torch.Tensor:
        rows = [
            sum(case["probs"][t, s] * each[int(case["ids"][t, s])](case["x"][t : t + 1]) for s in range(2))
            for t in range(6)
        ]
        return torch.cat(rows)  # type: ignore[arg-type]

    def test_one_module_for_all(self, case: dict[str, Any]) -> None:
        for module in (nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))):
            torch.testing.assert_close(self.run(case, module), self.expected(case, [module] * 3))

    def test_a_list_of_modules(self, case: dict[str, Any]) -> None:
        modules = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for experts in (modules, list(modules), tuple(modules)):
            torch.testing.assert_close(self.run(case, experts), self.expected(case, list(modules)))

    def test_a_module_that_takes_the_id(self, case: dict[str, Any]) -> None:
        class Experts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(3, 4, 4))

            def forward(self, rows: torch.Tensor, expert: int) -> torch.Tensor:
                return rows @ self.weight[expert]

        experts = Experts()
        each = [lambda rows, e=expert: experts(rows, e) for expert in range(3)]
        torch.testing.assert_close(self.run(case, experts), self.expected(case, each))

    def test_a_default_of_the_expert_s_own_is_left_alone(self, case: dict[str, Any]) -> None:
        torch.testing.assert_close(
            self.run(case, lambda rows, scale=2.0: rows * scale), self.expected(case, [lambda rows: 2 * rows] * 3)
        )
        # But expert_id is what the originals call the id.
        torch.testing.assert_close(
            self.run(case, lambda rows, expert_id=7: rows * expert_id),
            self.expected(case, [lambda rows, e=expert: rows * e for expert in range(3)]),
        )

    def test_a_built_in_function(self, case: dict[str, Any]) -> None:
        torch.testing.assert_close(self.run(case, torch.relu), self.expected(case, [torch.relu] * 3))

    def test_a_shared_module(self, case: dict[str, Any]) -> None:
        shared = nn.Linear(4, 4)
        out = case["dispatcher"].dispatch_with_shared_expert(
            case["x"], case["ids"], case["probs"], lambda rows: rows, shared, 0.25
        )
        torch.testing.assert_close(out, self.expected(case, [lambda rows: rows] * 3) + 0.25 * shared(case["x"]))
        with pytest.raises(InvalidInputError, match="an expert is a list"):
            case["dispatcher"].dispatch_with_shared_expert(
                case["x"], case["ids"], case["probs"], lambda rows: rows, [shared]
            )

    def test_experts_learn(self, case: dict[str, Any]) -> None:
        modules = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        other = copy.deepcopy(modules)
        self.run(case, modules).square().sum().backward()
        self.expected(case, list(other)).square().sum().backward()
        for ours, theirs in zip(modules.parameters(), other.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_an_expert_s_own_type_error_is_not_hidden() -> None:
    """Section 6: the originals called again without the id."""
    info = dispatch.group_tokens_by_expert_full(np.array([[0]]), 1)

    def broken(rows: Any, expert: int) -> Any:
        raise TypeError("the expert's own")

    with pytest.raises(TypeError, match="the expert's own"):
        dispatch.dispatch_to_experts(np.zeros((1, 2)), info, broken)


def test_combining(kind: Callable[[Any], Any]) -> None:
    """Section 6: the mixture of basis vectors, with each form of routing."""
    info = dispatch.group_tokens_by_expert_full(kind(np.array([[0, 1], [1, 0]])), 2)
    basis = kind(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32))
    probs = kind(np.array([[0.7, 0.3], [0.6, 0.4]], np.float32))
    forms: tuple[tuple[Any, ...], ...] = (
        (probs, info),
        ((probs, info),),
        ([probs, info],),
        ({"expert_probs": probs, "dispatch_info": info},),
        ({"probs": probs, "dispatch_info": info},),
    )
    for arguments in forms:
        out = dispatch.combine_expert_outputs(basis, *arguments)
        np.testing.assert_allclose(np.asarray(out), [[0.7, 0.3], [0.4, 0.6]], rtol=1e-6)
    for routing, message in (
        (probs, "pass probabilities and a DispatchInfo"),
        ((probs, 3), "dispatch_info is a int"),
        ({"probs": probs}, "it needs 'dispatch_info'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            dispatch.combine_expert_outputs(basis, routing)


def test_dispatcher(kind: Callable[[Any], Any]) -> None:
    """Section 6: 1 + .5 · 2 with a shared expert under the id −1; statistics of even and of collapsed routing."""
    dispatcher = dispatch.TokenDispatcher(num_experts=4, hidden_dim=3, intermediate_dim=8, enable_stats=True)
    ids = kind(np.array([[0, 1], [2, 3], [0, 2], [1, 3]]))
    x, probs = kind(np.ones((4, 3), np.float32)), kind(np.full((4, 2), 0.5, np.float32))
    out = dispatcher.dispatch_with_shared_expert(
        hidden_states=x,
        expert_ids=ids,
        expert_probs=probs,
        expert_forward=lambda rows, expert: rows,
        shared_expert_forward=lambda rows, expert: rows * (2 if expert == -1 else 0),
        shared_expert_weight=0.5,
    )
    assert np.asarray(out).tolist() == [[2.0] * 3] * 4
    assert dispatcher.last_dispatch_info is not None
    assert dispatcher.last_dispatch_info.num_tokens == 4
    stats = dispatcher.last_stats
    assert stats is not None
    assert (stats.num_tokens, stats.top_k, stats.num_experts) == (4, 2, 4)
    assert (stats.active_experts, stats.max_expert_load, stats.min_expert_load, stats.load_imbalance) == (4, 2, 2, 0.0)
    dispatcher.dispatch(x, kind(np.array([[0, 1]] * 4)), probs, lambda rows, expert: rows)
    stats = dispatcher.last_stats
    assert stats is not None
    assert (stats.active_experts, stats.max_expert_load, stats.load_imbalance) == (2, 4, 0.0)
    assert stats.load_imbalance_all == pytest.approx(1.0)  # two of four experts have 4, two have none
    dispatcher.dispatch(x, kind(np.array([[0, 1], [0, 1], [0, 1], [0, 2]])), probs, lambda rows, expert: rows)
    stats = dispatcher.last_stats
    assert stats is not None
    loads = np.array([4, 3, 1])
    assert stats.load_imbalance == pytest.approx(loads.std() / loads.mean())
    assert stats.min_expert_load == 1
    assert dispatch.TokenDispatcher(4, 3, 8).last_stats is None


def test_a_dispatcher_of_other_sizes(kind: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidInputError, match="top_k is 5, but there are 4 experts"):
        dispatch.TokenDispatcher(4, 3, 8, top_k=5)
    with pytest.raises(InvalidInputError, match="hidden_dim is 0"):
        dispatch.TokenDispatcher(4, 0, 8)
    dispatcher = dispatch.TokenDispatcher(4, 3, 8)
    ids, probs = kind(np.array([[0, 1]])), kind(np.ones((1, 2)))
    for x, wrong_ids, message in (
        (np.ones((1, 4)), ids, r"hidden_states has shape \[1, 4\], but must be \[T, 3\]"),
        (np.ones((1, 3)), ids[:, :1], r"expert_ids has shape \[1, 1\], but must be \[T, 2\]"),
        (
            np.ones((5, 3)),
            ids,
            r"activations has shape \[5, 3\], but must be \[1, …\]: num_tokens of the grouping is 1",
        ),
        (np.ones((0, 3)), ids, r"activations has shape \[0, 3\], but must be \[1, …\]"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            dispatcher.dispatch(kind(x), wrong_ids, probs, lambda rows: rows)
    assert dispatcher.last_dispatch_info is None
