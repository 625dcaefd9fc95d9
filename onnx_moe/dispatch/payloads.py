"""The forms that a dispatcher's arguments may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_moe.dispatch.grouping import DispatchInfo, check_expert_ids
from onnx_moe.errors import InvalidInputError


def as_number(value: Any) -> int | None:
    """A number of experts, or None for anything else."""
    return int(value) if isinstance(value, int | np.integer) else None


def expert_ids_of(routing: Any) -> tuple[Any, int]:
    """Expert ids and number of experts of a routing (`token_dispatcher.group_tokens_by_expert`).

    Raises InvalidInputError for another form.
    """
    num_experts = None
    if isinstance(routing, Mapping):
        expert_ids = _entry(routing, ("expert_ids", "indices"))
        num_experts = routing.get("num_experts")
    elif isinstance(routing, tuple | list):
        if len(routing) not in (1, 2, 3) or not hasattr(routing[0], "shape"):
            raise InvalidInputError(
                f"routing is a {type(routing).__name__} of {len(routing)}: pass num_experts, expert_ids, (expert_ids, "
                "probabilities), (expert_ids, probabilities, num_experts) or a mapping with 'expert_ids', where "
                "expert_ids is an array [T, k]."
            )
        expert_ids = routing[0]
        num_experts = routing[2] if len(routing) == 3 else None
    else:
        expert_ids = routing
    check_expert_ids(expert_ids, 1 if num_experts is None else int(num_experts))
    if num_experts is None:
        num_experts = int(expert_ids.max()) + 1 if expert_ids.shape[0] else 1
    return expert_ids, max(int(num_experts), 1)


def probs_and_info_of(routing: Any) -> tuple[Any, DispatchInfo]:
    """Probabilities and grouping of what `combine_expert_outputs` may get for both. InvalidInputError else."""
    if isinstance(routing, Mapping):
        pair = _entry(routing, ("expert_probs", "probs")), _entry(routing, ("dispatch_info",))
    elif isinstance(routing, tuple | list) and len(routing) == 2:
        pair = routing[0], routing[1]
    else:
        raise InvalidInputError(
            f"routing is a {type(routing).__name__}: pass probabilities and a DispatchInfo, (probabilities, "
            "DispatchInfo), or a mapping with 'expert_probs' and 'dispatch_info'."
        )
    if not isinstance(pair[1], DispatchInfo):
        raise InvalidInputError(f"dispatch_info is a {type(pair[1]).__name__}: pass what group_tokens_by_expert gave.")
    return pair


def _entry(mapping: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if mapping.get(name) is not None:
            return mapping[name]
    others = "".join(f" (or {name!r})" for name in names[1:])
    raise InvalidInputError(f"the mapping has the keys {sorted(mapping)}: it needs {names[0]!r}{others}.")


def joined(parts: Sequence[Any]) -> Any:
    """Arrays or tensors one below the other."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))
