"""Quantising weights to FP4 and back, in native code."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe import _native
from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.formats import get_format

if TYPE_CHECKING:
    import torch

#: Weights that one task quantises, at least: enough that a task's own costs do not show.
_TASK_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class QuantizedWeights:
    """Weights [..., N, K] in FP4, as `MoEExpertGemmFP4` takes them.

    weights: uint8 [..., N, K/2], low nibble = even K. scales: uint8 (E8M0 or E4M3) or float16 [..., N, K/block_size].
    global_scale: float32 [...], one for each matrix, for nvfp4; None for formats that have none.
    """

    weights: NDArray[np.uint8]
    scales: NDArray[Any]
    global_scale: NDArray[np.float32] | None
    format: str
    block_size: int

    @property
    def nbytes(self) -> int:
        extra = 0 if self.global_scale is None else self.global_scale.nbytes
        return self.weights.nbytes + self.scales.nbytes + extra


def _as_array(weights: NDArray[Any] | torch.Tensor) -> tuple[NDArray[Any], str]:
    """Contiguous array of float, float16 or bfloat16 (as uint16 bits), and the name of its element type."""
    if not isinstance(weights, np.ndarray):
        import torch

        tensor = weights.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy(), "bfloat16"
        weights = tensor.numpy()
    name = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}.get(weights.dtype.name)
    if name is None:
        raise InvalidInputError(
            f"weights are {weights.dtype.name}: only float32, float16 and bfloat16 can be quantized; convert "
            "them first."
        )
    return np.ascontiguousarray(weights), name


_one_core: ContextVar[bool] = ContextVar("one_core", default=False)


def use_one_core() -> None:
    """Has this thread's `run_on_every_core` use no core but its own: for threads that already are one for each core."""
    _one_core.set(True)


def run_on_every_core(count: int, work: Callable[[int], None]) -> None:
    """Runs `work` for each of `count` tasks on every core: the native code holds no lock."""
    if _one_core.get():
        for task in range(count):
            work(task)
        return
    with ThreadPoolExecutor(max_workers=max(1, min(count, os.cpu_count() or 1))) as pool:
        for _ in pool.map(work, range(count)):
            pass


@dataclass(frozen=True)
class _Source:
    """Matrices [count, N, K] to quantise, and how: the arguments of `quantize` after their checks."""

    matrices: NDArray[Any]
    element_type: str
    leading: tuple[int, ...]
    importance: NDArray[np.float32] | None
    scale: str

    def weights(self, index: int, first_row: int = 0) -> int:
        return int(self.matrices[index, first_row:].ctypes.data)

    def column_importance(self, index: int) -> int | None:
        return None if self.importance is None else int(self.importance[index].ctypes.data)

    @contextmanager
    def named_errors(self, index: int, first_row: int = 0) -> Iterator[None]:
        """Says which matrix of a stack an error is about, and counts its rows from the matrix's first."""
        try:
            yield
        except OnnxMoeError as error:
            text = re.sub(r"at row (\d+)", lambda match: f"at row {int(match[1]) + first_row}", str(error))
            if self.leading:
                position = [int(i) for i in np.unravel_index(index, self.leading)]
                text = f"matrix {position} of the weights: {text}"
            raise OnnxMoeError(text) from error


def quantize(
    weights: NDArray[Any] | torch.Tensor,
    format: str = "mxfp4",
    *,
    block_size: int = 0,
    scale: str = "mse",
    importance: NDArray[Any] | None = None,
    global_scale: NDArray[Any] | None = None,
) -> QuantizedWeights:
    """Quantises `weights` [..., N, K] (float32, float16 or bfloat16; numpy or torch) to FP4.

    Every weight is divided by its block's scale and rounded to the nearest E2M1 value, ties to even, saturating at ±6.
    `scale` says how a block's scale follows from its weights: "mse" (the default) takes the one with the least
    squared error, of all that can have it (for fp4, of 48); "floor", "ceil", "rceil" and "even" are the rules of the
    same names in OCP MX implementations (floor(log2 max) - 2; ceil(log2 max) - 2; the smallest power of two that clips
    nothing; max rounded to one mantissa bit first). For nvfp4 and fp4 they say how max / 6 is rounded to E4M3 or
    float16. nvfp4 first divides each matrix by a global scale: max / (6 · 448), or with "mse" the one among it and
    seven larger ones that leaves the least error on a sample of rows.

    importance: [..., K], finite and ≥ 0: how much the squared error of a column counts for "mse", such as the mean
    square of the activations that it meets. global_scale: [...], for nvfp4 only: the global scales to use.

    Raises InvalidInputError for a shape, element type or option that cannot be, OnnxMoeError for a NaN or infinity.
    """
    block = get_format(format).resolve_block_size(block_size)
    if scale not in _native.SCALE_RULES:
        raise InvalidInputError(f"scale={scale!r} is unknown: use one of {', '.join(_native.SCALE_RULES)}.")
    array, element_type = _as_array(weights)
    if array.ndim < 2 or array.shape[-1] % block:
        raise InvalidInputError(
            f"weights have shape {list(array.shape)}, but must be [..., N, K] with K a multiple of {format}'s block of "
            f"{block}: pad K with zeros."
        )
    *leading, rows, columns = array.shape
    count = int(np.prod(leading))
    source = _Source(
        array.reshape(count, rows, columns),
        element_type,
        tuple(leading),
        _checked_importance(importance, (*leading, columns), scale),
        scale,
    )
    global_scales = _checked_global_scale(global_scale, tuple(leading), format)
    if global_scales is None:
        global_scales = _choose_global_scales(source, format, block)
    codes = np.empty((count, rows, columns // 2), np.uint8)
    scales = np.empty((count, rows, columns // block), get_format(format).scale_type)
    _quantize_rows(source, format, block, codes, scales, global_scales)
    return QuantizedWeights(
        weights=codes.reshape(*leading, rows, columns // 2),
        scales=scales.reshape(*leading, rows, columns // block),
        global_scale=global_scales.reshape(leading) if format == "nvfp4" else None,
        format=format,
        block_size=block,
    )


def _quantize_rows(
    source: _Source,
    format: str,
    block: int,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    global_scales: NDArray[np.float32],
) -> None:
    """Fills in codes and scales of all matrices, in tasks of some rows of one."""
    count, rows, columns = source.matrices.shape
    rows_per_task = max(1, _TASK_WEIGHTS // max(columns, 1))
    parts = -(-rows // rows_per_task)
    library = _native.library()
    element_type = _native.ELEMENT_TYPES[source.element_type]

    def work(task: int) -> None:
        index, first = task // parts, task % parts * rows_per_task
        some = slice(first, first + rows_per_task)
        matrix = native_matrix(codes[index, some], scales[index, some], float(global_scales[index]), format, block)
        with source.named_errors(index, first):
            if source.importance is None:
                rule = _native.SCALE_RULES[source.scale]
                status = library.onnx_moe_quantize(
                    source.weights(index, first), element_type, rule, ctypes.byref(matrix)
                )
            else:
                status = library.onnx_moe_quantize_weighted(
                    source.weights(index, first), element_type, source.column_importance(index), ctypes.byref(matrix)
                )
            _native.check(status)

    run_on_every_core(count * parts, work)


def _choose_global_scales(source: _Source, format: str, block: int) -> NDArray[np.float32]:
    count, rows, columns = source.matrices.shape
    global_scales = np.ones(count, np.float32)
    if format != "nvfp4":
        return global_scales

    def work(index: int) -> None:
        matrix = _native.Fp4Matrix(
            format=_native.FORMAT_NUMBERS[format], block_size=block, rows=rows, columns=columns, global_scale=1.0
        )
        with source.named_errors(index):
            status = _native.library().onnx_moe_choose_global_scale(
                source.weights(index),
                _native.ELEMENT_TYPES[source.element_type],
                _native.SCALE_RULES[source.scale],
                source.column_importance(index),
                ctypes.byref(matrix),
            )
            _native.check(status)
        global_scales[index] = matrix.global_scale

    run_on_every_core(count, work)
    return global_scales


def _checked_importance(
    importance: NDArray[Any] | None, shape: tuple[int, ...], scale: str
) -> NDArray[np.float32] | None:
    """Contiguous [count, K]."""
    if importance is None:
        return None
    if scale != "mse":
        raise InvalidInputError(f"importance is given, which scale={scale!r} does not look at: use scale='mse'.")
    values = np.ascontiguousarray(importance, np.float32)
    if values.shape != shape:
        raise InvalidInputError(f"importance has shape {list(values.shape)}, but must be {list(shape)}: [..., K].")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise InvalidInputError("importance holds a value that is negative or not finite: it multiplies squares.")
    return values.reshape(-1, shape[-1])


def _checked_global_scale(
    global_scale: NDArray[Any] | None, shape: tuple[int, ...], format: str
) -> NDArray[np.float32] | None:
    """Contiguous [count]."""
    if global_scale is None:
        return None
    if format != "nvfp4":
        raise InvalidInputError(f"global_scale is given, which {format} does not have: leave it out, or use nvfp4.")
    values = np.asarray(global_scale, np.float32)
    if values.shape != shape:
        raise InvalidInputError(f"global_scale has shape {list(values.shape)}, but must be {list(shape)}.")
    return values.reshape(-1)


def dequantize(quantized: QuantizedWeights) -> NDArray[np.float32]:
    """The float32 weights [..., N, K] that `quantized` stands for.

    Raises InvalidInputError unless the shapes and element types in `quantized` fit each other and its format.
    """
    block = get_format(quantized.format).resolve_block_size(quantized.block_size)
    _check_quantized(quantized, block)
    *leading, rows, packed_columns = quantized.weights.shape
    count = int(np.prod(leading))
    codes = np.ascontiguousarray(quantized.weights).reshape(count, rows, packed_columns)
    scales = np.ascontiguousarray(quantized.scales).reshape(count, rows, 2 * packed_columns // block)
    if quantized.global_scale is None:
        global_scale = np.ones(count, np.float32)
    else:
        global_scale = quantized.global_scale.reshape(count)
    weights = np.empty((count, rows, 2 * packed_columns), np.float32)

    def dequantize_matrix(index: int) -> None:
        matrix = native_matrix(codes[index], scales[index], float(global_scale[index]), quantized.format, block)
        _native.check(_native.library().onnx_moe_dequantize(ctypes.byref(matrix), weights[index].ctypes.data))

    run_on_every_core(count, dequantize_matrix)
    return weights.reshape(*leading, rows, 2 * packed_columns)


def _check_quantized(quantized: QuantizedWeights, block: int) -> None:
    """InvalidInputError unless the native code may read `quantized`: it trusts the sizes that it is given."""
    weights, scales, global_scale = quantized.weights, quantized.scales, quantized.global_scale
    if weights.ndim < 2 or weights.dtype != np.uint8 or 2 * weights.shape[-1] % block:
        raise InvalidInputError(
            f"weights are {weights.dtype.name} of shape {list(weights.shape)}, but must be uint8 [..., N, K/2] with K "
            f"a multiple of {quantized.format}'s block of {block}."
        )
    scale_type = get_format(quantized.format).scale_type
    expected = (*weights.shape[:-1], 2 * weights.shape[-1] // block)
    if scales.shape != expected or scales.dtype.name != scale_type:
        raise InvalidInputError(
            f"scales are {scales.dtype.name} of shape {list(scales.shape)}, but weights of shape {list(weights.shape)} "
            f"in {quantized.format} take {scale_type} of shape {list(expected)}."
        )
    if global_scale is not None and global_scale.shape != weights.shape[:-2]:
        raise InvalidInputError(
            f"global_scale has shape {list(global_scale.shape)}, but must be {list(weights.shape[:-2])}, one for each "
            "matrix."
        )


def native_matrix(
    codes: NDArray[np.uint8], scales: NDArray[Any], global_scale: float, format: str, block: int
) -> _native.Fp4Matrix:
    rows, packed_columns = codes.shape
    return _native.Fp4Matrix(
        format=_native.FORMAT_NUMBERS[format],
        block_size=block,
        rows=rows,
        columns=2 * packed_columns,
        codes=codes.ctypes.data,
        scales=scales.ctypes.data,
        global_scale=global_scale,
    )
