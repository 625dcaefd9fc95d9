"""Ids and weights of a call as programs have them: numpy, Torch, nested lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.dispatch.grouping import check_id_range
from onnx_moe.errors import InvalidInputError

Array = NDArray[Any]


def expert_ids_of(given: Any, num_experts: int, top_k: int) -> NDArray[np.int32]:
    """Ids [T, top_k] of integers of that shape or flat. Raises InvalidInputError that names row and slot."""
    ids = _on_cpu(given)
    if ids.dtype.kind not in "iu":
        raise InvalidInputError(f"expert_ids is {ids.dtype}, but must be integers [T, {top_k}].")
    fits = (ids.ndim == 2 and ids.shape[1] == top_k) or (ids.ndim == 1 and ids.size % top_k == 0)
    if not fits:
        raise InvalidInputError(f"expert_ids has shape {list(ids.shape)}, but must be [T, {top_k}] or flat.")
    ids = ids.reshape(-1, top_k)
    check_id_range(ids, num_experts)
    return ids.astype(np.int32)


def weights_of(ids: NDArray[np.int32], given: Any, num_experts: int) -> tuple[Array | None, Array | None]:
    """Weights [T, top_k] of the chosen experts, and probabilities [T, num_experts] of all, as far as `given` has them.

    Raises InvalidInputError for another shape, and for values that are negative or no numbers.
    """
    if given is None:
        return None, None
    tokens, top_k = ids.shape
    values = _on_cpu(given)
    if values.dtype.kind not in "fiu":
        raise InvalidInputError(f"expert_probs is {values.dtype}, but must be numbers.")
    values = values.astype(np.float32)
    wrong = ~np.isfinite(values) | (values < 0)
    if wrong.any():
        raise InvalidInputError(
            f"expert_probs holds {values[wrong][0]}, but weights are numbers of at least 0: pass what the logits "
            "become, not the logits (`router_probabilities`)."
        )
    if values.shape == (tokens, num_experts):
        return np.take_along_axis(values, ids.astype(np.int64), 1), values
    if values.shape == ids.shape or (values.ndim == 1 and values.size == ids.size):
        return values.reshape(ids.shape), None
    raise InvalidInputError(
        f"expert_probs has shape {list(values.shape)}, but must be [{tokens}, {top_k}], the weights of the chosen "
        f"experts, or [{tokens}, {num_experts}], the probabilities of all."
    )


def _on_cpu(given: Any) -> Array:
    if not hasattr(given, "detach"):
        return np.asarray(given)
    tensor = given.detach().cpu()
    # numpy has no bfloat16.
    array: Array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array
