"""Sizes: of what a cache holds, and of budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_moe.errors import InvalidInputError

MEBIBYTE = 1 << 20


def nbytes_of(data: Any) -> int:
    """Bytes of numpy arrays, Torch tensors, bytes, whatever has an integer `nbytes`, and of sequences and mappings of
    them. Of a view: its own elements, not what it keeps alive.

    Raises InvalidInputError for anything else.
    """
    if isinstance(data, bytes | bytearray):
        return len(data)
    if isinstance(data, Mapping):
        return sum(nbytes_of(part) for part in data.values())
    if isinstance(data, Sequence) and not isinstance(data, str | memoryview):
        return sum(nbytes_of(part) for part in data)
    try:
        return int(data.nbytes)
    except (AttributeError, TypeError, ValueError):
        raise InvalidInputError(
            f"a {type(data).__name__} has no nbytes: cache arrays, tensors, bytes, or sequences or mappings of them."
        ) from None


def budget_bytes(name: str, mebibytes: float) -> int:
    """A budget in MiB, which may be a fraction, as bytes; InvalidInputError unless it is finite and not negative."""
    if not (isinstance(mebibytes, int | float) and math.isfinite(mebibytes) and mebibytes >= 0):
        raise InvalidInputError(f"{name} is {mebibytes!r}, but must be a number of MiB, 0 or more.")
    return int(mebibytes * MEBIBYTE)
