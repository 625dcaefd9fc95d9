"""Quantising weights to FP4 and back, in native code."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe import _native
from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.formats import get_format

if TYPE_CHECKING:
    import torch

#: Largest E2M1 value times largest E4M3 value: what nvfp4 maps an expert's maximum to.
_NVFP4_RANGE = 6.0 * 448.0


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


def _for_each_matrix(count: int, work: Callable[[int], None]) -> None:
    """Runs `work` for each matrix on every core: the native code holds no lock."""
    with ThreadPoolExecutor(max_workers=max(1, min(count, os.cpu_count() or 1))) as pool:
        for _ in pool.map(work, range(count)):
            pass


def _global_scale(matrix: NDArray[Any], element_type: str) -> float:
    """The nvfp4 scale of a whole matrix: its maximum becomes 6 · 448, the largest product of code and block scale."""
    if element_type == "bfloat16":
        bits = int((matrix.view(np.uint16) & 0x7FFF).max(initial=0))
        largest = float(np.uint32(bits << 16).view(np.float32))
    else:
        largest = float(np.abs(matrix).max(initial=0))
    if not 0 < largest < np.inf:
        return 1.0  # zeros; what is not finite is refused where its position is known
    return max(largest / _NVFP4_RANGE, float(np.finfo(np.float32).tiny))


def quantize(
    weights: NDArray[Any] | torch.Tensor,
    format: str = "mxfp4",
    *,
    block_size: int = 0,
    scale: str = "mse",
) -> QuantizedWeights:
    """Quantises `weights` [..., N, K] (float32, float16 or bfloat16; numpy or torch) to FP4.

    Every weight is divided by its block's scale and rounded to the nearest E2M1 value, ties to even, saturating at ±6.
    `scale` says how a block's scale follows from its weights: "mse" (the default) takes the one with the least
    squared error; "floor", "ceil", "rceil" and "even" are the rules of the same names in OCP MX implementations
    (floor(log2 max) - 2; ceil(log2 max) - 2; the smallest power of two that clips nothing; max rounded to one
    mantissa bit first). For nvfp4 and fp4 they say how max / 6 is rounded to E4M3 or float16. nvfp4 first divides each
    matrix by a global scale of max / (6 · 448).

    Raises InvalidInputError for a shape or element type that cannot be quantised, OnnxMoeError for a NaN or infinity.
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
    source = array.reshape(count, rows, columns)
    codes = np.empty((count, rows, columns // 2), np.uint8)
    scales = np.empty((count, rows, columns // block), get_format(format).scale_type)
    global_scale = np.ones(count, np.float32)

    def quantize_matrix(index: int) -> None:
        if format == "nvfp4":
            global_scale[index] = _global_scale(source[index], element_type)
        matrix = _matrix(codes[index], scales[index], float(global_scale[index]), format, block)
        status = _native.library().onnx_moe_quantize(
            source[index].ctypes.data,
            _native.ELEMENT_TYPES[element_type],
            _native.SCALE_RULES[scale],
            ctypes.byref(matrix),
        )
        try:
            _native.check(status)
        except OnnxMoeError as error:
            if not leading:
                raise
            position = [int(i) for i in np.unravel_index(index, leading)]
            raise OnnxMoeError(f"matrix {position} of the weights: {error}") from error

    _for_each_matrix(count, quantize_matrix)
    return QuantizedWeights(
        weights=codes.reshape(*leading, rows, columns // 2),
        scales=scales.reshape(*leading, rows, columns // block),
        global_scale=global_scale.reshape(leading) if format == "nvfp4" else None,
        format=format,
        block_size=block,
    )


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
        matrix = _matrix(codes[index], scales[index], float(global_scale[index]), quantized.format, block)
        _native.check(_native.library().onnx_moe_dequantize(ctypes.byref(matrix), weights[index].ctypes.data))

    _for_each_matrix(count, dequantize_matrix)
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


def _matrix(
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
