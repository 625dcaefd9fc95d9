"""Rows to the experts, and the experts' outputs back to their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe.dispatch.grouping import DispatchInfo
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    from onnx_moe.dispatch.grouping import Array


def gather_for_experts(x: Array, info: DispatchInfo) -> Any:
    """Rows [A, H] of x [T, H] in the order of the experts: row i is x[info.sorted_token_indices[i]], bit for bit."""
    _check_rows("x", x, info.num_tokens, "num_tokens")
    return x[_as_kind_of(x, info.sorted_token_indices)]


def scatter_expert_outputs(y: Array, probs: Array, info: DispatchInfo) -> Any:
    """out [T, N] in y's dtype: out[t] = Σ_slot probs[t, slot] · y[row of (t, slot)], summed in slot order in float32.

    y: the experts' outputs [A, N] in the order of `gather_for_experts`; probs [T, k], not renormalised. An expert that
    occurs twice in a row counts twice. Raises InvalidInputError for other shapes.
    """
    _check_rows("y", y, info.total_assignments, "total_assignments")
    if tuple(probs.shape) != (info.num_tokens, info.top_k):
        raise InvalidInputError(
            f"probs has shape {list(probs.shape)}, but must be [{info.num_tokens}, {info.top_k}], one weight for each "
            "slot of each token."
        )
    rows = _as_kind_of(y, info.inverse_indices).reshape(info.num_tokens, info.top_k)
    weights = _as_kind_of(y, probs)
    total = _float32(weights[:, :1]) * _float32(y[rows[:, 0]])
    for slot in range(1, info.top_k):
        total = total + _float32(weights[:, slot, None]) * _float32(y[rows[:, slot]])
    return total.astype(y.dtype) if isinstance(y, np.ndarray) else total.to(y.dtype)


def _check_rows(name: str, array: Any, rows: int, meaning: str) -> None:
    if len(array.shape) != 2 or array.shape[0] != rows:
        raise InvalidInputError(
            f"{name} has shape {list(array.shape)}, but must be [{rows}, …]: {meaning} of the grouping is {rows}."
        )


def _as_kind_of(model: Any, array: Any) -> Any:
    """`array` as numpy or on the Torch device, like `model`."""
    if isinstance(model, np.ndarray):
        return np.asarray(array)
    import torch

    return torch.as_tensor(array, device=model.device)


def _float32(array: Any) -> Any:
    return array.astype(np.float32) if isinstance(array, np.ndarray) else array.float()
