"""Second-order quantisation: codes of one column after another, each error made up for by the columns that follow.

The method is GPTQ's (Frantar et al., arXiv:2210.17323), for several matrices at once and for block formats: a block's
scale is chosen when its first column is reached, on the weights as they then are, with each column's error counted as
GPTQ counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_moe.formats import E2M1_VALUES, get_format
from onnx_moe.quantization import QuantizedWeights, quantize
from onnx_moe.reference.decode import decode_scales

#: Added to a Hessian's diagonal, as a share of its mean: what tokens of the calibration text left open stays bounded.
DAMPING = 0.01
#: Likewise, of the regression on changed inputs: it is over few tokens for each column.
RIDGE = 0.1
#: Columns whose errors reach the rest of the matrix in one product.
_COLUMNS_AT_ONCE = 128
#: E2M1 code of twice a magnitude.
_CODE_OF_TWICE = torch.zeros(13, dtype=torch.uint8)
_CODE_OF_TWICE[[int(2 * value) for value in E2M1_VALUES[:8]]] = torch.arange(8, dtype=torch.uint8)
#: Smallest and largest scale as stored, and how far off its neighbours are that are tried: an octave, an eighth of one,
#: a sixteenth of one.
_SCALE_CODES = {"mxfp4": (0, 254, 1), "nvfp4": (1, 0x7E, 1), "fp4": (1, 0x7BFF, 64)}


def quantize_second_order(
    weights: torch.Tensor, hessians: torch.Tensor, format: str, block_size: int = 0
) -> QuantizedWeights:
    """`weights` [B, N, K] in FP4 with little Σ over tokens of |W x - Q x|².

    hessians: [B, K, K], the mean of x xᵀ over the tokens of each matrix (any factor will do). Rows are rounded as
    `quantize` rounds them, so that every reader decodes the result like any other.
    """
    block = get_format(format).resolve_block_size(block_size)
    factors = _inverse_factors(hessians)
    importance = 1 / factors.diagonal(dim1=1, dim2=2).square()
    importance /= importance.mean(dim=1, keepdim=True)
    global_scale = _global_scale(weights, importance, format, block)
    batch, rows, columns = weights.shape
    # Columns first, so that one of them is one run of memory.
    remaining = weights.float().transpose(1, 2).contiguous()
    codes = torch.empty(batch, columns, rows, dtype=torch.uint8)
    scales = []
    for start in range(0, columns, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, columns)
        errors = torch.empty(batch, stop - start, rows)
        for first in range(start, stop, block):
            last = first + block
            some = remaining[:, first:last]
            candidates = _scale_candidates(some, importance[:, first:last], format, block, global_scale)
            chosen = _round_block(some, candidates, format, global_scale, factors[:, first:last, first:last])
            codes[:, first:last] = chosen.codes
            scales.append(chosen.scales[..., None])
            inner = errors[:, first - start : last - start]
            inner[:] = chosen.errors
            remaining[:, last:stop] -= factors[:, first:last, last:stop].transpose(1, 2) @ inner
        remaining[:, stop:] -= factors[:, start:stop, stop:].transpose(1, 2) @ errors
    return QuantizedWeights(
        weights=pack(codes),
        scales=np.concatenate(scales, axis=-1),
        global_scale=global_scale,
        format=format,
        block_size=block,
    )


def follow_inputs(weights: torch.Tensor, inputs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """`weights` [B, N, K] moved so that they make of the inputs as they are nearly what they made of them as they were.

    A ridge regression before anything is rounded. GPTAQ (Li et al., arXiv:2504.02692) has the same aim, inside GPTQ.

    inputs: of each matrix, rows X [n, K] as they are and X' [n, K] as they were.
    """
    moved = weights.float().clone()
    for matrix, (rows, original) in zip(moved, inputs, strict=True):
        # W + W (X' - X)ᵀ X (Xᵀ X + r)⁻¹ = W + W (X' - X)ᵀ (X Xᵀ + r)⁻¹ X: whichever system is smaller.
        count, columns = rows.shape
        ridge = RIDGE * float(rows.square().sum()) / columns or 1.0
        if count < columns:
            factor = _damped_cholesky(rows @ rows.T, ridge)
            matrix += (matrix @ (original - rows).T) @ torch.cholesky_solve(rows, factor)
        else:
            factor = _damped_cholesky(rows.T @ rows, ridge)
            change = torch.cholesky_solve(rows.T @ (original - rows), factor)
            matrix += matrix @ change.T
    return moved


def _damped_cholesky(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """float32 is enough: a ridge of RIDGE bounds the condition number."""
    moments.diagonal().add_(damping)
    factor: torch.Tensor = torch.linalg.cholesky(moments)
    return factor


def _inverse_factors(hessians: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factors U [B, K, K] of the damped Hessians' inverses, H⁻¹ = Uᵀ U.

    Row i says how an error of column i, divided by U[i, i], is made up for by the columns behind it. With the columns
    in reverse order H = L Lᵀ, and U is L⁻¹ turned back: half the work of inverting H and factoring that.
    """
    columns = hessians.shape[1]
    factors = torch.empty(hessians.shape)
    identity = torch.eye(columns, dtype=torch.float64)
    for index, hessian in enumerate(hessians):
        damped = hessian.double()
        mean = float(damped.diagonal().mean())
        damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
        lower = torch.linalg.cholesky(damped.flip(0, 1))
        factors[index] = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
    return factors


def _global_scale(
    weights: torch.Tensor, importance: torch.Tensor, format: str, block: int
) -> NDArray[np.float32] | None:
    if format != "nvfp4":
        return None
    return quantize(weights, format, block_size=block, importance=importance.numpy()).global_scale


@dataclass
class _Block:
    """A block of columns in FP4: codes [B, block, N], scales as stored [B, N], and each column's error [B, block, N] in
    units of what GPTQ calls its diagonal: the sum of their squares is what the block adds to the output's error."""

    codes: torch.Tensor
    scales: NDArray[Any]
    errors: torch.Tensor


def _scale_candidates(
    columns: torch.Tensor,
    importance: torch.Tensor,
    format: str,
    block: int,
    global_scale: NDArray[np.float32] | None,
) -> list[NDArray[Any]]:
    """Scales [B, N] as stored to try for weights [B, block, N]: the one with the least error of its own and its
    neighbours. (Which one leaves the least once errors are made up for is only known afterwards.)"""
    rows = columns.transpose(1, 2).contiguous()
    own = importance.contiguous().numpy()
    best = quantize(rows, format, block_size=block, importance=own, global_scale=global_scale).scales[..., 0]
    numbers = best.view(np.uint16) if best.dtype == np.float16 else best
    smallest, largest, step = _SCALE_CODES[format]
    around = [np.clip(numbers.astype(np.int64) + offset * step, smallest, largest) for offset in (0, -1, 1)]
    return [codes.astype(numbers.dtype).view(best.dtype) for codes in around]


def _round_block(
    columns: torch.Tensor,
    candidates: list[NDArray[Any]],
    format: str,
    global_scale: NDArray[np.float32] | None,
    factors: torch.Tensor,
) -> _Block:
    """The block `columns` [B, block, N], each of its rows with the candidate that leaves the least error."""
    best: _Block | None = None
    for scales in candidates:
        values = decode_scales(torch.from_numpy(scales), get_format(format), torch.float32)
        if global_scale is not None:
            values = values * torch.from_numpy(global_scale)[:, None]
        tried = _round_columns(columns.clone(), values, factors)
        tried.scales = scales
        if best is None:
            best = tried
            continue
        better = tried.errors.square().sum(dim=1) < best.errors.square().sum(dim=1)
        best = _Block(
            torch.where(better[:, None], tried.codes, best.codes),
            np.where(better.numpy(), tried.scales, best.scales),
            torch.where(better[:, None], tried.errors, best.errors),
        )
    assert best is not None
    return best


def _round_columns(columns: torch.Tensor, scales: torch.Tensor, factors: torch.Tensor) -> _Block:
    """`columns` [B, block, N], which are changed, with scales [B, N] by value."""
    codes, errors = torch.empty_like(columns, dtype=torch.uint8), torch.empty_like(columns)
    diagonal = factors.diagonal(dim1=1, dim2=2)
    # As the C++ quantiser: finite, so that a zero times it stays a zero.
    inverse = (1 / scales).clamp(max=torch.finfo(torch.float32).max)
    for index in range(columns.shape[1]):
        column = columns[:, index]
        magnitude = round_to_e2m1(column.abs() * inverse)
        codes[:, index] = encode(magnitude, column)
        error = (column - (magnitude * scales).copysign(column)) / diagonal[:, index, None]
        errors[:, index] = error
        following = columns[:, index + 1 :]
        following.addcmul_(factors[:, index, index + 1 :, None], error[:, None], value=-1)
    return _Block(codes, np.empty(0), errors)


def encode(magnitude: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """E2M1 codes of the values `magnitude` ≥ 0 with the signs of `sign`."""
    return _CODE_OF_TWICE[(2 * magnitude).int()] | torch.signbit(sign).to(torch.uint8) << 3


def pack(codes: torch.Tensor) -> NDArray[np.uint8]:
    """Codes [B, K, N] as bytes [B, N, K/2]."""
    by_row = codes.transpose(1, 2)
    packed: NDArray[np.uint8] = (by_row[..., 0::2] | by_row[..., 1::2] << 4).contiguous().numpy()
    return packed


def round_to_e2m1(magnitude: torch.Tensor) -> torch.Tensor:
    """The nearest E2M1 values, ties to even, saturated at 6: adding 1.5·2^23 steps rounds to a step."""
    shift = torch.where(magnitude < 2, 6291456.0, torch.where(magnitude < 4, 12582912.0, 25165824.0))
    return ((magnitude + shift) - shift).clamp(max=6.0)
