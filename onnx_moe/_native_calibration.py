"""The part of the C API that quantises for the inputs that a matrix meets, by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from onnx_moe import _native
from onnx_moe.quantization import QuantizedWeights, native_matrix, run_on_every_core

if TYPE_CHECKING:
    import torch

#: Columns that one call works on, at most.
LOT_COLUMNS = 128
#: Rows that one task works on.
_TASK_ROWS = 512


class MatrixPart(ctypes.Structure):
    """onnx_moe_matrix_part."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("first_row", "rows", "first_column", "columns"))


_FLOATS = ctypes.c_void_p
_PART = ctypes.POINTER(MatrixPart)
_MATRIX = ctypes.POINTER(_native.Fp4Matrix)
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "onnx_moe_round_columns": (ctypes.c_int, (_FLOATS, _FLOATS, _FLOATS, _FLOATS, _PART, _MATRIX)),
    "onnx_moe_descend_columns": (ctypes.c_int, (_FLOATS, _FLOATS, _FLOATS, _FLOATS, _PART, _MATRIX)),
}


@cache
def _library() -> ctypes.CDLL:
    loaded = _native.library()
    _native.declare(loaded, _SIGNATURES)
    return loaded


@dataclass(frozen=True)
class Columns:
    """Matrices on their way to FP4. weights, errors: float32 [B, K, N], contiguous; out: codes and scales of [B, N, K].

    errors become W - Q, column by column.
    """

    weights: torch.Tensor
    errors: torch.Tensor
    out: QuantizedWeights

    def round(self, columns: range, feedback: torch.Tensor, pivots: torch.Tensor) -> None:
        """onnx_moe_round_columns on every matrix. feedback: [B, K, K]; pivots: [B, K]; both contiguous."""
        assert feedback.is_contiguous()
        assert pivots.is_contiguous()

        def call(index: int, part: MatrixPart, matrix: _native.Fp4Matrix) -> int:
            status: int = _library().onnx_moe_round_columns(
                self.weights[index].data_ptr(),
                self.errors[index].data_ptr(),
                feedback[index].data_ptr(),
                pivots[index].data_ptr(),
                ctypes.byref(part),
                ctypes.byref(matrix),
            )
            return status

        self._run(columns, call)

    def descend(self, columns: range, hessians: torch.Tensor, gradients: torch.Tensor) -> None:
        """onnx_moe_descend_columns on every matrix. hessians: [B, K, K]; gradients: [B, len(columns), N]."""
        assert hessians.is_contiguous()
        assert gradients[0].is_contiguous()

        def call(index: int, part: MatrixPart, matrix: _native.Fp4Matrix) -> int:
            status: int = _library().onnx_moe_descend_columns(
                self.weights[index].data_ptr(),
                self.errors[index].data_ptr(),
                hessians[index].data_ptr(),
                gradients[index].data_ptr(),
                ctypes.byref(part),
                ctypes.byref(matrix),
            )
            return status

        self._run(columns, call)

    def _run(self, columns: range, call: Callable[[int, MatrixPart, _native.Fp4Matrix], int]) -> None:
        assert self.weights.is_contiguous()
        assert self.errors.is_contiguous()
        count, _, rows = self.weights.shape
        parts = -(-rows // _TASK_ROWS)
        scales = np.ones(count) if self.out.global_scale is None else self.out.global_scale

        def work(task: int) -> None:
            index, first = task // parts, task % parts * _TASK_ROWS
            matrix = native_matrix(
                self.out.weights[index],
                self.out.scales[index],
                float(scales[index]),
                self.out.format,
                self.out.block_size,
            )
            part = MatrixPart(first, min(_TASK_ROWS, rows - first), columns.start, len(columns))
            _native.check(call(index, part, matrix))

        run_on_every_core(count * parts, work)
