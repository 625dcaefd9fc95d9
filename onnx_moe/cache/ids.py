"""Expert ids as people have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError


def routing_rows(expert_ids: Any, num_experts: int) -> NDArray[np.int64]:
    """Ids [T, k] or, of one token, [k]: integers as numpy, Torch or lists → int64 [T, k], a row for each token.

    Raises InvalidInputError for another shape or type, or an id outside [0, num_experts).
    """
    array = np.asarray(expert_ids.detach().cpu() if hasattr(expert_ids, "detach") else expert_ids)
    if array.size == 0 and array.ndim in (1, 2):
        return np.empty((0, 1), np.int64)
    if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"expert_ids is {array.dtype} of shape {list(array.shape)}, but must be integers [T, k], or [k] of one "
            "token."
        )
    if array.min() < 0 or array.max() >= num_experts:
        raise InvalidInputError(
            f"expert_ids holds {array.min()} to {array.max()}, but experts are numbered 0 to {num_experts - 1}."
        )
    return np.atleast_2d(array.astype(np.int64))


def check_number(name: str, value: int, count: int) -> None:
    """InvalidInputError unless `value` is one of the integers 0 to count − 1."""
    if not isinstance(value, int | np.integer) or not 0 <= value < count:
        raise InvalidInputError(f"{name} is {value!r}, but must be an integer from 0 to {count - 1}.")
