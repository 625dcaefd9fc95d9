"""A dispatcher that calls the experts: the dispatch operations under their other names, and what is built on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_moe.dispatch import grouping, payloads
from onnx_moe.dispatch.calling import Experts, function_of
from onnx_moe.dispatch.grouping import DispatchInfo
from onnx_moe.dispatch.load import compute_expert_load, compute_load_balancing_loss
from onnx_moe.dispatch.rows import check_rows, gather_for_experts, scatter_expert_outputs, take_rows
from onnx_moe.dispatch.stats import DispatchStats
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    from onnx_moe.dispatch.grouping import Array

__all__ = [
    "DispatchInfo",
    "DispatchStats",
    "TokenDispatcher",
    "combine_expert_outputs",
    "compute_expert_load",
    "compute_load_balancing_loss",
    "dispatch_to_experts",
    "gather_tokens_for_expert",
    "group_tokens_by_expert",
]

#: The id under which a shared expert is called.
SHARED_EXPERT = -1


def group_tokens_by_expert(expert_ids_or_tokens: Any, num_experts_or_routing_weights: Any) -> Any:
    """(expert_ids [T, k], num_experts) → DispatchInfo, or (x [T, H], routing) → (rows in expert order, DispatchInfo).

    routing: expert_ids [T, k] alone; a tuple or list (expert_ids, probabilities) or (expert_ids, probabilities,
    num_experts); or a mapping with "expert_ids" (or "indices") and perhaps "num_experts". Without a number of experts
    it is the largest id plus 1.
    """
    number = payloads.as_number(num_experts_or_routing_weights)
    if number is not None:
        return grouping.group_tokens_by_expert_full(expert_ids_or_tokens, number)
    expert_ids, num_experts = payloads.expert_ids_of(num_experts_or_routing_weights)
    info = grouping.group_tokens_by_expert_full(expert_ids, num_experts)
    return gather_for_experts(expert_ids_or_tokens, info), info


def gather_tokens_for_expert(activations: Array, dispatch_info: DispatchInfo, expert_id: int) -> Any:
    """The rows [n, H] of activations [T, H] that go to an expert, in token order; [0, H] for an idle one."""
    check_rows("activations", activations, dispatch_info.num_tokens, "num_tokens")
    first, last = dispatch_info.expert_range(expert_id)
    return take_rows(activations, dispatch_info.sorted_token_indices[first:last])


def dispatch_to_experts(
    activations_or_grouped: Any, dispatch_info_or_experts: Any, expert_forward: Experts | None = None
) -> Any:
    """The experts' outputs [A, N], in the order of the experts: every expert that has rows is called once with them.

    (activations [T, H], DispatchInfo, experts), or ((rows in expert order [A, H], DispatchInfo), experts), as
    `group_tokens_by_expert` gives them. experts: a function or module for all of them, or a list (also a
    torch.nn.ModuleList) of num_experts ones. A function gets the rows, and the expert's id where it has a second
    parameter without a default or one that is called expert_id. What an expert raises passes through.
    Raises InvalidInputError when nothing is assigned, experts are missing, or an output has another number of rows than
    its input.
    """
    grouped, info, experts = _grouped(activations_or_grouped, dispatch_info_or_experts, expert_forward)
    if info.total_assignments == 0:
        raise InvalidInputError("no token is assigned to any expert: there is nothing to compute.")
    call = function_of(experts, info.num_experts)
    outputs = []
    for expert in range(info.num_experts):
        first, last = info.expert_range(expert)
        if first == last:
            continue
        output = call(grouped[first:last], expert)
        if len(output) != last - first:
            raise InvalidInputError(
                f"expert {expert} made {len(output)} rows of {last - first}: it must return one row for each."
            )
        outputs.append(output)
    return payloads.joined(outputs)


def _grouped(first: Any, second: Any, third: Experts | None) -> tuple[Any, DispatchInfo, Experts]:
    """Rows in expert order, their grouping and the experts of both forms of arguments."""
    if isinstance(second, DispatchInfo) and third is not None:
        return gather_for_experts(first, second), second, third
    if isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[1], DispatchInfo) and third is None:
        check_rows("the grouped rows", first[0], first[1].total_assignments, "total_assignments")
        return first[0], first[1], second
    raise InvalidInputError(
        f"dispatch_to_experts got {', '.join(type(each).__name__ for each in (first, second, third))}: pass "
        "(activations, DispatchInfo, experts) or ((grouped rows, DispatchInfo), experts)."
    )


def combine_expert_outputs(
    expert_outputs: Array, expert_probs_or_routing_weights: Any, dispatch_info: DispatchInfo | None = None
) -> Any:
    """`scatter_expert_outputs`: (outputs, probabilities [T, k], DispatchInfo), or (outputs, routing) with routing a
    tuple (probabilities, DispatchInfo) or a mapping with "expert_probs" (or "probs") and "dispatch_info".
    """
    probs, info = expert_probs_or_routing_weights, dispatch_info
    if info is None:
        probs, info = payloads.probs_and_info_of(expert_probs_or_routing_weights)
    return scatter_expert_outputs(expert_outputs, probs, info)


class TokenDispatcher:
    """Groups, calls the experts, combines; remembers the last grouping.

    hidden_dim: of the rows; intermediate_dim is the experts' own affair and only described. enable_stats: keeps
    `last_stats` of each call.
    """

    def __init__(
        self, num_experts: int, hidden_dim: int, intermediate_dim: int, top_k: int = 2, enable_stats: bool = False
    ) -> None:
        sizes = {"num_experts": num_experts, "hidden_dim": hidden_dim, "intermediate_dim": intermediate_dim}
        for name, value in {**sizes, "top_k": top_k}.items():
            if value < 1:
                raise InvalidInputError(f"{name} is {value}, but must be at least 1.")
        if top_k > num_experts:
            raise InvalidInputError(f"top_k is {top_k}, but there are {num_experts} experts: use at most as many.")
        self.num_experts = num_experts
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.top_k = top_k
        self.enable_stats = enable_stats
        self.last_dispatch_info: DispatchInfo | None = None
        self.last_stats: DispatchStats | None = None

    def dispatch(self, hidden_states: Array, expert_ids: Array, expert_probs: Array, expert_forward: Experts) -> Any:
        """[T, N]: Σ_slot expert_probs[t, slot] · expert(hidden_states[t]), for hidden_states [T, hidden_dim],
        expert_ids and expert_probs [T, top_k]; expert_forward as in `dispatch_to_experts`.

        Raises InvalidInputError for shapes that do not fit, OnnxMoeError for an id outside [0, num_experts).
        """
        wanted = (("hidden_states", hidden_states, self.hidden_dim), ("expert_ids", expert_ids, self.top_k))
        for name, array, size in wanted:
            if len(array.shape) != 2 or array.shape[1] != size:
                raise InvalidInputError(f"{name} has shape {list(array.shape)}, but must be [T, {size}].")
        info = grouping.group_tokens_by_expert_full(expert_ids, self.num_experts)
        outputs = dispatch_to_experts(hidden_states, info, expert_forward)
        self.last_dispatch_info = info
        self.last_stats = DispatchStats.of(info) if self.enable_stats else None
        return combine_expert_outputs(outputs, expert_probs, info)

    def dispatch_with_shared_expert(
        self,
        hidden_states: Array,
        expert_ids: Array,
        expert_probs: Array,
        expert_forward: Experts,
        shared_expert_forward: Any,
        shared_expert_weight: float = 1.0,
    ) -> Any:
        """`dispatch` plus shared_expert_weight · shared_expert_forward(hidden_states, −1): an expert that sees every
        token. It gets the id −1 as an expert would get its own.
        """
        routed = self.dispatch(hidden_states, expert_ids, expert_probs, expert_forward)
        return routed + shared_expert_weight * function_of(shared_expert_forward)(hidden_states, SHARED_EXPERT)
