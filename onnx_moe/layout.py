"""The two weight layouts of MoEExpertGemmFP4: row by row, and rows interleaved for the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = TypeVar("Array", np.ndarray, torch.Tensor)

#: Rows that lie interleaved.
GROUP_ROWS = 16
#: Successive elements of a row that stay together: bytes of codes (eight columns), and scales.
CODE_BYTES = 4
SCALES = 1


def check_interleaved(rows: int, gated: bool) -> None:
    """InvalidInputError unless N = `rows` rows, half of them gate rows if `gated`, can lie interleaved."""
    multiple = GROUP_ROWS * (2 if gated else 1)
    if rows % multiple:
        raise InvalidInputError(
            f"weights have {rows} rows (N), but weight_layout='interleaved' takes a multiple of {multiple}: use "
            "weight_layout='rows'."
        )


def interleave(array: Array, together: int) -> Array:
    """Weights or scales [..., N, C] with groups of 16 rows interleaved: [N / 16, C / together, 16, together].

    together: CODE_BYTES for weights [..., N, K/2], SCALES for scales [..., N, K/block]. N must be a multiple of 16. The
    shape stays the same. numpy arrays and Torch tensors alike.
    """
    *leading, rows, size = array.shape
    groups = array.reshape(*leading, rows // GROUP_ROWS, GROUP_ROWS, size // together, together)
    return groups.swapaxes(-3, -2).reshape(array.shape)


def deinterleave(array: Array, together: int) -> Array:
    """The inverse of `interleave`."""
    *leading, rows, size = array.shape
    groups = array.reshape(*leading, rows // GROUP_ROWS, size // together, GROUP_ROWS, together)
    return groups.swapaxes(-3, -2).reshape(array.shape)
