"""Every kernel decodes every code and every scale to the value that ml_dtypes and numpy give it."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_moe import _native

Array = NDArray[Any]

KERNELS = _native.kernel_names()
BLOCKS = {"mxfp4": 32, "nvfp4": 16, "fp4": 32}
SCALE_TYPES = {"mxfp4": ml_dtypes.float8_e8m0fnu, "nvfp4": ml_dtypes.float8_e4m3fn, "fp4": np.float16}
#: Blocks of a row: one, which ends a vector of scales early, and as many as fill every kernel's vectors.
ROW_BLOCKS = (1, 16)
#: Rows of x that an expert gets at once: kernels multiply few rows and many rows by different code.
TOGETHER = (1, 2, 3)


def scales_of_all_codes(format: str) -> Array:
    """Every code of the format's scales, as it is stored."""
    if format == "fp4":
        return np.arange(65536, dtype=np.uint16).view(np.float16)
    return np.arange(256, dtype=np.uint8)


def values_of(format: str, scales: Array) -> Array:
    return scales.view(SCALE_TYPES[format]).astype(np.float64)


def products(format: str, codes: Array, scales: Array, x: Array, together: int) -> NDArray[np.float32]:
    """x [T, K] · Wᵀ [K, N], `together` rows of x in a call; codes: one to a byte [N, K]; scales [N, blocks]."""
    weights = np.ascontiguousarray(codes[:, 0::2] | codes[:, 1::2] << 4)
    scales = np.ascontiguousarray(scales)
    y = np.full((len(x), len(codes)), 12345, np.float32)
    for first in range(0, len(x), together):
        rows = np.ascontiguousarray(x[first : first + together], np.float32)
        ids = np.zeros(len(rows), np.int32)
        arguments = _native.ExpertGemmArgs(
            type=_native.ELEMENT_TYPES["float"],
            tokens=len(rows),
            slots=1,
            num_experts=1,
            rows=len(codes),
            columns=x.shape[1],
            x=rows.ctypes.data,
            expert_ids=ids.ctypes.data,
            weights=weights.ctypes.data,
            scales=scales.ctypes.data,
            format=_native.FORMAT_NUMBERS[format],
            block_size=BLOCKS[format],
            activation=b"none",
            alpha=1.0,
            y=y[first : first + together].ctypes.data,
        )
        _native.check(_native.library().onnx_moe_expert_gemm(ctypes.byref(arguments)))
    return y


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("format", BLOCKS)
@pytest.mark.parametrize("row_blocks", ROW_BLOCKS)
@pytest.mark.parametrize("together", TOGETHER)
def test_every_finite_scale(kernel: str, format: str, row_blocks: int, together: int) -> None:
    """Scales read one by one, at every place of a vector of scales: all weights 1, x picks a block."""
    block = BLOCKS[format]
    codes = scales_of_all_codes(format)
    values = values_of(format, codes)
    codes, values = codes[np.isfinite(values)], values[np.isfinite(values)]
    if format != "fp4":  # each code at each place; float16's are so many that each has one place
        places = (np.arange(len(codes))[:, None] + np.arange(row_blocks)) % len(codes)
    else:
        places = np.arange(len(codes)).reshape(-1, row_blocks)
    picks = np.repeat(np.eye(row_blocks), together, axis=0)
    x = np.zeros((len(picks), row_blocks * block))
    x[:, ::block] = picks
    ones = np.full((len(places), row_blocks * block), 2, np.uint8)
    with _native.use_kernel(kernel):
        y = products(format, ones, codes[places], x, together)
    np.testing.assert_array_equal(y, (picks @ values[places].T).astype(np.float32))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("format", BLOCKS)
@pytest.mark.parametrize("row_blocks", ROW_BLOCKS)
@pytest.mark.parametrize("together", TOGETHER)
def test_every_scale_that_is_not_finite(kernel: str, format: str, row_blocks: int, together: int) -> None:
    codes = scales_of_all_codes(format)
    values = values_of(format, codes)
    special = ~np.isfinite(values)
    assert special.sum() == {"mxfp4": 1, "nvfp4": 2, "fp4": 2048}[format]
    scales = np.repeat(codes[special][:, None], row_blocks, axis=1)
    columns = row_blocks * BLOCKS[format]
    ones = np.full((len(scales), columns), 2, np.uint8)
    with _native.use_kernel(kernel):
        y = products(format, ones, scales, np.ones((together, columns)), together)
    with np.errstate(invalid="ignore"):  # numpy calls the conversion of a signalling NaN invalid
        expected = values[special].astype(np.float32)
    np.testing.assert_array_equal(y, np.tile(expected, (together, 1)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("format", BLOCKS)
@pytest.mark.parametrize("together", TOGETHER)
def test_every_code_at_every_column(kernel: str, format: str, together: int) -> None:
    """A row of x picks a column: past whole vectors of codes, and in the rest behind them."""
    columns = 288  # 2 · 128 + 32: two chunks of the widest kernel and a quarter of one
    codes = ((np.arange(16)[:, None] + np.arange(columns)) % 16).astype(np.uint8)
    block_scales = {"mxfp4": [126, 128, 1, 250], "nvfp4": [0x38, 0x01, 0xC1, 0x7E], "fp4": [1.5, -0.25, 6e-8, 60000]}
    scale_codes = np.array(block_scales[format], np.float16 if format == "fp4" else np.uint8)
    blocks = (np.arange(16)[:, None] + np.arange(columns // BLOCKS[format])) % 4
    weights = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    weights *= np.repeat(values_of(format, scale_codes)[blocks], BLOCKS[format], axis=1)
    with _native.use_kernel(kernel):
        y = products(format, codes, scale_codes[blocks], np.eye(columns), together)
    np.testing.assert_array_equal(y, weights.T.astype(np.float32))
