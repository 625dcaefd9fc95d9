"""Products that show every code and every scale as a kernel decodes them, and what ml_dtypes and numpy say they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnx_moe.layout import CODE_BYTES, GROUP_ROWS, SCALES, interleave

Array = NDArray[Any]

BLOCKS = {"mxfp4": 32, "nvfp4": 16, "fp4": 32}
SCALE_TYPES = {"mxfp4": ml_dtypes.float8_e8m0fnu, "nvfp4": ml_dtypes.float8_e4m3fn, "fp4": np.float16}
#: Blocks of a row: one, which ends a vector of scales early, and as many as fill every kernel's vectors.
ROW_BLOCKS = (1, 16)
#: Rows of x in a call: kernels multiply one row, two rows and more rows by different code, tiles by 16 and by 32.
ROWS_OF_X = (1, 2, 16, 40)
#: Codes and their values.
_LARGEST_WEIGHT, _SMALLEST_WEIGHT = (7, 6.0), (1, 0.5)


@dataclass(frozen=True)
class Product:
    """y [T, N] of one expert without activation: codes, one to a byte, [N, K]; scales [N, blocks]; x [T, K]."""

    format: str
    codes: Array
    scales: Array
    x: NDArray[np.float32]
    expected: NDArray[np.float32]

    @property
    def weights(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.codes[:, 0::2] | self.codes[:, 1::2] << 4)

    def interleaved(self) -> Product:
        """The same with rows of zeros up to whole groups of 16 rows, and the groups interleaved."""
        missing = -len(self.codes) % GROUP_ROWS
        codes, scales = (np.pad(array, ((0, missing), (0, 0))) for array in (self.codes, self.scales))
        return replace(self, codes=interleave(codes, 2 * CODE_BYTES), scales=interleave(scales, SCALES))


def products(format: str, row_blocks: int, rows_of_x: int) -> Iterator[Product]:
    """Every scale at every place of `row_blocks`, and every code at every column, in calls of `rows_of_x` rows."""
    yield from _finite_scales(format, row_blocks, rows_of_x, slice(None))
    if format == "mxfp4":  # without those that a kernel may leave to other code, and these alone
        yield from _finite_scales(format, row_blocks, rows_of_x, slice(67, 188))
        yield from _finite_scales(format, row_blocks, rows_of_x, slice(188, 253), _LARGEST_WEIGHT, 2.0**-20)
        yield from _finite_scales(format, row_blocks, rows_of_x, slice(67), _SMALLEST_WEIGHT, 2.0**20)
        # With scales of activations that a kernel may leave to other code.
        yield from _finite_scales(format, row_blocks, rows_of_x, slice(88, 188), x_value=2.0**-85)
    yield _other_scales(format, row_blocks, rows_of_x)
    if row_blocks > 1:
        yield from _codes(format, rows_of_x)


def _scales_of_all_codes(format: str) -> tuple[Array, Array]:
    """Every code of the format's scales, as it is stored, and its value."""
    codes: Array = np.arange(256, dtype=np.uint8)
    if format == "fp4":
        codes = np.arange(65536, dtype=np.uint16).view(np.float16)
    return codes, codes.view(SCALE_TYPES[format]).astype(np.float64)


def _calls(format: str, codes: Array, scales: Array, x: Array, y: Array, rows_of_x: int) -> Iterator[Product]:
    for first in range(0, len(x), rows_of_x):
        rows = slice(first, first + rows_of_x)
        x_rows, y_rows = (np.ascontiguousarray(array[rows], np.float32) for array in (x, y))
        yield Product(format, codes, np.ascontiguousarray(scales), x_rows, y_rows)


def _finite_scales(
    format: str,
    row_blocks: int,
    rows_of_x: int,
    which: slice,
    weight: tuple[int, float] = (2, 1.0),
    x_value: float = 1.0,
) -> Iterator[Product]:
    """All weights have one code (given with its value), and a row of x picks a block with `x_value`.

    A scaled weight may be a subnormal number where its product is none; beyond float32's range it is no weight at all.
    """
    stored, values = (array[which] for array in _scales_of_all_codes(format))
    stored, values = stored[np.isfinite(values)], values[np.isfinite(values)]
    if format == "fp4":  # so many that each has one place
        places = np.arange(len(stored)).reshape(-1, row_blocks)
    else:
        places = (np.arange(len(stored))[:, None] + np.arange(row_blocks)) % len(stored)
    block = BLOCKS[format]
    picks = np.repeat(x_value * np.eye(row_blocks), max(1, rows_of_x // row_blocks), axis=0)
    x = np.zeros((len(picks), row_blocks * block))
    x[:, ::block] = picks
    code, value = weight
    codes = np.full((len(places), row_blocks * block), code, np.uint8)
    yield from _calls(format, codes, stored[places], x, picks @ values[places].T * value, rows_of_x)


def _other_scales(format: str, row_blocks: int, rows_of_x: int) -> Product:
    """Infinities and NaN, each in a row of its own: nothing can pick a block beside them."""
    stored, values = _scales_of_all_codes(format)
    special = ~np.isfinite(values)
    scales = np.repeat(stored[special][:, None], row_blocks, axis=1)
    columns = row_blocks * BLOCKS[format]
    with np.errstate(invalid="ignore"):  # numpy calls the conversion of a signalling NaN invalid
        expected = np.tile(values[special].astype(np.float32), (rows_of_x, 1))
    ones = np.full((len(scales), columns), 2, np.uint8)
    return Product(format, ones, scales, np.ones((rows_of_x, columns), np.float32), expected)


def _codes(format: str, rows_of_x: int) -> Iterator[Product]:
    """A row of x picks a column: of whole vectors of codes, and of the rest behind them."""
    block, columns = BLOCKS[format], 288  # 2 · 128 + 32: two vectors of the widest kernel and a quarter of one
    codes = ((np.arange(16)[:, None] + np.arange(columns)) % 16).astype(np.uint8)
    some: dict[str, Array] = {
        "mxfp4": np.array([126, 128, 1, 250], np.uint8),
        "nvfp4": np.array([0x38, 0x01, 0xC1, 0x7E], np.uint8),
        "fp4": np.array([1.5, -0.25, 6e-8, 60000], np.float16),
    }
    scales = some[format][(np.arange(16)[:, None] + np.arange(columns // block)) % 4]
    weights = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    weights *= np.repeat(scales.view(SCALE_TYPES[format]).astype(np.float64), block, axis=1)
    yield from _calls(format, codes, scales, np.eye(columns), weights.T, rows_of_x)
