"""A dispatcher that calls the experts: the dispatch operations under their other names, and what is built on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe.dispatch import grouping
from onnx_moe.dispatch.grouping import DispatchInfo
from onnx_moe.dispatch.load import compute_expert_load, compute_load_balancing_loss
from onnx_moe.dispatch.rows import gather_for_experts, scatter_expert_outputs
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    from onnx_moe.dispatch.grouping import Array

    #: Rows [n, H] of an expert and its id → [n, N].
    ExpertFunction = Callable[[Any, int], Any]
    #: One function for all experts, or one a module or function of rows alone for each expert.
    Experts = ExpertFunction | Sequence[Callable[[Any], Any]]

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

combine_expert_outputs = scatter_expert_outputs


def group_tokens_by_expert(tokens_or_ids: Any, payload: Any) -> Any:
    """(expert_ids [T, k], num_experts) → DispatchInfo, or (x [T, H], routing) → (rows in expert order, DispatchInfo).

    routing: (expert_ids, probabilities) or (expert_ids, probabilities, num_experts), or a mapping with "expert_ids" (or
    "indices") and perhaps "num_experts". Without a number of experts it is the largest id plus 1.
    """
    if isinstance(payload, int | np.integer):
        return grouping.group_tokens_by_expert_full(tokens_or_ids, int(payload))
    expert_ids, num_experts = _routing(payload)
    if num_experts is None:
        num_experts = int(expert_ids.max()) + 1 if expert_ids.shape[0] else 1
    info = grouping.group_tokens_by_expert_full(expert_ids, num_experts)
    return gather_for_experts(tokens_or_ids, info), info


def _routing(payload: Any) -> tuple[Any, int | None]:
    """Expert ids and number of experts of the second argument's second form."""
    if isinstance(payload, Mapping):
        for name in ("expert_ids", "indices"):
            if payload.get(name) is not None:
                return payload[name], payload.get("num_experts")
        raise InvalidInputError(f"the mapping has the keys {sorted(payload)}: it needs 'expert_ids' (or 'indices').")
    if isinstance(payload, tuple) and len(payload) in (2, 3):
        return payload[0], payload[2] if len(payload) == 3 else None
    raise InvalidInputError(
        f"routing is a {type(payload).__name__}: pass num_experts, (expert_ids, probabilities), (expert_ids, "
        "probabilities, num_experts) or a mapping with 'expert_ids'."
    )


def gather_tokens_for_expert(x: Array, info: DispatchInfo, expert: int) -> Any:
    """The rows [n, H] of x [T, H] that go to `expert`, in token order; [0, H] for an idle one."""
    first, last = info.expert_range(expert)
    tokens = info.sorted_token_indices[first:last]
    return x[np.asarray(tokens)] if isinstance(x, np.ndarray) else x[_tensor(tokens, x)]


def _tensor(values: Any, model: Any) -> Any:
    import torch

    return torch.as_tensor(values, device=model.device)


def dispatch_to_experts(x: Array, info: DispatchInfo, experts: Experts) -> Any:
    """The experts' outputs [A, N], in the order of the experts: every expert that has rows is called once with them.

    experts: a function of (rows [n, H], expert id), or a sequence of num_experts functions or modules of the rows
    alone. What an expert raises passes through. Raises InvalidInputError when nothing is assigned, experts are
    missing, or an output has another number of rows than its input.
    """
    if info.total_assignments == 0:
        raise InvalidInputError("no token is assigned to any expert: there is nothing to compute.")
    call = _caller(experts, info.num_experts)
    outputs = []
    for expert in range(info.num_experts):
        if not info.expert_batch_size(expert):
            continue
        rows = gather_tokens_for_expert(x, info, expert)
        output = call(rows, expert)
        if len(output) != len(rows):
            raise InvalidInputError(
                f"expert {expert} made {len(output)} rows of {len(rows)}: it must return one row for each."
            )
        outputs.append(output)
    if isinstance(x, np.ndarray):
        return np.concatenate(outputs)
    import torch

    return torch.cat(outputs)


def _caller(experts: Experts, num_experts: int) -> ExpertFunction:
    if callable(experts) and not isinstance(experts, Sequence):
        return experts if _takes_an_id(experts) else lambda rows, _expert: experts(rows)  # type: ignore[call-arg]
    if len(experts) < num_experts:
        raise InvalidInputError(f"{len(experts)} experts were given, but ids go to {num_experts - 1}: give them all.")
    return lambda rows, expert: experts[expert](rows)


def _takes_an_id(function: Callable[..., Any]) -> bool:
    """Whether a function takes a second argument: asked of its signature, so that no TypeError of its own is hidden."""
    try:
        inspect.signature(function).bind(None, 0)
    except TypeError:
        return False
    except ValueError:  # a built-in without a signature
        return True
    return True


@dataclass(frozen=True)
class DispatchStats:
    """How a call used the experts.

    min_expert_load is that of the experts that had any rows. load_imbalance: standard deviation over mean of the
    non-zero loads, 0 with one active expert or none; load_imbalance_all: the same over all experts, which also shows
    that most of them were idle.
    """

    num_tokens: int
    top_k: int
    num_experts: int
    active_experts: int
    max_expert_load: int
    min_expert_load: int
    load_imbalance: float
    load_imbalance_all: float

    @classmethod
    def of(cls, info: DispatchInfo) -> DispatchStats:
        """The statistics of a grouping."""
        loads = np.diff(np.asarray(_on_cpu(info.expert_offsets)))
        active = loads[loads > 0]
        return cls(
            num_tokens=info.num_tokens,
            top_k=info.top_k,
            num_experts=info.num_experts,
            active_experts=int(active.size),
            max_expert_load=int(active.max(initial=0)),
            min_expert_load=int(active.min()) if active.size else 0,
            load_imbalance=_variation(active) if active.size > 1 else 0.0,
            load_imbalance_all=_variation(loads) if active.size else 0.0,
        )


def _on_cpu(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else array.cpu()


def _variation(loads: Any) -> float:
    return float(loads.std() / loads.mean())


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

    def dispatch(self, x: Array, expert_ids: Array, probs: Array, experts: Experts) -> Any:
        """[T, N]: Σ_slot probs[t, slot] · expert(x[t]) for x [T, hidden_dim], expert_ids and probs [T, top_k].

        Raises InvalidInputError for shapes that do not fit, OnnxMoeError for an id outside [0, num_experts).
        """
        for name, array, size in (("x", x, self.hidden_dim), ("expert_ids", expert_ids, self.top_k)):
            if len(array.shape) != 2 or array.shape[1] != size:
                raise InvalidInputError(f"{name} has shape {list(array.shape)}, but must be [T, {size}].")
        info = grouping.group_tokens_by_expert_full(expert_ids, self.num_experts)
        self.last_dispatch_info = info
        self.last_stats = DispatchStats.of(info) if self.enable_stats else None
        return combine_expert_outputs(dispatch_to_experts(x, info, experts), probs, info)

    def dispatch_with_shared_expert(
        self,
        x: Array,
        expert_ids: Array,
        probs: Array,
        experts: Experts,
        shared_expert: ExpertFunction,
        shared_expert_weight: float = 1.0,
    ) -> Any:
        """`dispatch` plus shared_expert_weight · shared_expert(x, −1): an expert that sees every token."""
        routed = self.dispatch(x, expert_ids, probs, experts)
        return routed + shared_expert_weight * _caller(shared_expert, 1)(x, SHARED_EXPERT)
