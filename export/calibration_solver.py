"""Second-order quantisation: codes of one column after another, each error made up for by the columns that follow.

The method is GPTQ's (Frantar et al., arXiv:2210.17323), for several matrices at once and for block formats: a block's
scale is chosen when its first column is reached, on the weights as they then are, with each column's error counted as
GPTQ counts it. Afterwards codes move, one at a time, to where they leave less error. What happens within a lot of
columns is native code (ops/core/second_order.h), what a lot does to the others a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_moe._native_calibration import LOT_COLUMNS, Columns
from onnx_moe.formats import get_format
from onnx_moe.quantization import QuantizedWeights, quantize

#: Added to a Hessian's diagonal, as a share of its mean: what tokens of the calibration text left open stays bounded.
DAMPING = 0.01
#: Likewise, of the regression on changed inputs: it is over few tokens for each column.
RIDGE = 0.1
#: Times that every code is moved to the best one. The second time gains a tenth of what the first one does.
SWEEPS = 2
#: Columns that the products with all others are taken for at once: enough that reading the others is not what it costs.
_GROUP_COLUMNS = 512
#: Blocks of columns that a matrix of second moments is computed in: the products above the diagonal are enough.
_MOMENT_BLOCKS = 4


def quantize_second_order(
    weights: torch.Tensor, hessians: torch.Tensor, format: str, block_size: int = 0, sweeps: int = SWEEPS
) -> QuantizedWeights:
    """`weights` [B, N, K] in FP4 with little Σ over tokens of |W x - Q x|².

    hessians: [B, K, K], the mean of x xᵀ over the tokens of each matrix (any factor will do). Rows are rounded as
    `quantize` rounds them, so that every reader decodes the result like any other. sweeps: 0 is GPTQ.
    """
    block = get_format(format).resolve_block_size(block_size)
    damped = _damped(hessians)
    feedback, pivots = _feedback(damped)
    columns = _unrounded(weights, pivots, format, block)
    _round(columns, feedback, pivots)
    for _ in range(sweeps):
        _descend(columns, damped)
    return columns.out


def _round(columns: Columns, feedback: torch.Tensor, pivots: torch.Tensor) -> None:
    errors = columns.errors
    for group in _parts(range(errors.shape[1]), _GROUP_COLUMNS):
        some = slice(group.start, group.stop)
        errors[:, some] = feedback[:, : group.start, some].transpose(1, 2) @ errors[:, : group.start]
        for lot in _parts(group, LOT_COLUMNS):
            own, before = slice(lot.start, lot.stop), slice(group.start, lot.start)
            errors[:, own] += feedback[:, before, own].transpose(1, 2) @ errors[:, before]
            columns.round(lot, feedback, pivots)


def _descend(columns: Columns, hessians: torch.Tensor) -> None:
    errors = columns.errors
    for group in _parts(range(errors.shape[1]), _GROUP_COLUMNS):
        gradients = hessians[:, group.start : group.stop] @ errors
        for lot in _parts(group, LOT_COLUMNS):
            own, behind = slice(lot.start, lot.stop), slice(lot.stop, group.stop)
            old = errors[:, own].clone()
            columns.descend(lot, hessians, gradients[:, lot.start - group.start : lot.stop - group.start])
            gradients[:, lot.stop - group.start :] += hessians[:, behind, own] @ (errors[:, own] - old)


def _parts(columns: range, size: int) -> Iterator[range]:
    return (range(start, min(start + size, columns.stop)) for start in range(columns.start, columns.stop, size))


def _damped(hessians: torch.Tensor) -> torch.Tensor:
    damped = hessians.float().clone(memory_format=torch.contiguous_format)
    diagonal = damped.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    diagonal += torch.where(mean > 0, DAMPING * mean, torch.ones(()))
    return damped


def _feedback(damped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U [B, K, K], upper with a diagonal of ones, and d [B, K] of H = (U D) (U D)ᵀ; of d, the proportions.

    e H eᵀ is Σ over columns of ((e U)ⱼ dⱼ)², and (e U)ⱼ is column j's own error with what the columns before it add to
    it: GPTQ, without its inverse of H. float32 is enough: DAMPING bounds H's condition number by 100 K.
    """
    upper = torch.linalg.cholesky(damped.flip(1, 2)).flip(1, 2).contiguous()
    pivots = upper.diagonal(dim1=1, dim2=2).clone()
    upper /= pivots[:, None]
    return upper, (pivots / pivots.square().mean(dim=1, keepdim=True).sqrt())


def _unrounded(weights: torch.Tensor, pivots: torch.Tensor, format: str, block: int) -> Columns:
    count, rows, columns = weights.shape
    out = QuantizedWeights(
        weights=np.empty((count, rows, columns // 2), np.uint8),
        scales=np.empty((count, rows, columns // block), get_format(format).scale_type),
        global_scale=_global_scales(weights, pivots.square(), format, block),
        format=format,
        block_size=block,
    )
    by_column = weights.float().transpose(1, 2).contiguous()
    return Columns(by_column, torch.zeros_like(by_column), out)


def _global_scales(
    weights: torch.Tensor, importance: torch.Tensor, format: str, block: int
) -> NDArray[np.float32] | None:
    if format != "nvfp4":
        return None
    return quantize(weights, format, block_size=block, importance=importance.numpy()).global_scale


def second_moments(rows: torch.Tensor) -> torch.Tensor:
    """Xᵀ X of rows X [n, K]."""
    columns = rows.shape[1]
    moments = rows.new_empty(columns, columns)
    edges = [columns * part // _MOMENT_BLOCKS for part in range(_MOMENT_BLOCKS + 1)]
    for start, stop in pairwise(edges):
        moments[start:stop, start:] = rows[:, start:stop].T @ rows[:, start:]
        moments[stop:, start:stop] = moments[start:stop, stop:].T
    return moments


def follow_inputs(
    weights: torch.Tensor, rows: torch.Tensor, original: torch.Tensor, moments: torch.Tensor
) -> torch.Tensor:
    """A matrix `weights` [N, K] moved so that it makes of `rows` X [n, K] nearly what it made of them as they were.

    A ridge regression before anything is rounded. GPTAQ (Li et al., arXiv:2504.02692) has the same aim, inside GPTQ.
    original: the rows X' as they were; moments: Xᵀ X.
    """
    # W + W (X' - X)ᵀ X (Xᵀ X + r)⁻¹ = W + W (X' - X)ᵀ (X Xᵀ + r)⁻¹ X: whichever system is smaller.
    count, columns = rows.shape
    ridge = RIDGE * float(moments.diagonal().mean()) or 1.0
    matrix = weights.float()
    if count < columns:
        factor = _damped_cholesky(rows @ rows.T, ridge)
        return torch.addmm(matrix, matrix @ (original - rows).T, torch.cholesky_solve(rows, factor))
    factor = _damped_cholesky(moments.clone(), ridge)
    change = torch.cholesky_solve(rows.T @ (original - rows), factor)
    return torch.addmm(matrix, matrix, change.T)


def _damped_cholesky(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """float32 is enough: a ridge of RIDGE bounds the condition number."""
    moments.diagonal().add_(damping)
    factor: torch.Tensor = torch.linalg.cholesky(moments)
    return factor
