"""Codes moved one at a time to where they leave less error, once all of them are there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from onnx_moe.export.calibration_solver import DAMPING, encode, pack, round_to_e2m1
from onnx_moe.formats import get_format
from onnx_moe.quantization import QuantizedWeights, dequantize
from onnx_moe.reference.decode import decode_scales

#: Passes over the columns. The second one gains a tenth of what the first one does.
SWEEPS = 2
#: Columns whose changes reach the rest of the matrix in one product.
_COLUMNS_AT_ONCE = 128
#: Columns that one code's change reaches at once, of those: more of them leave the cache.
_COLUMNS_IN_CACHE = 16


def refine(quantized: QuantizedWeights, weights: torch.Tensor, hessians: torch.Tensor) -> QuantizedWeights:
    """`quantized` [B, N, K] with codes that make tr((Q - W) H (Q - W)ᵀ) smaller; its scales stay.

    Coordinate descent: every code in turn becomes the best one while all others stay. weights: [B, N, K]; hessians:
    [B, K, K], damped as the solver damps them. The error never rises.
    """
    scales = _scales(quantized)
    values = torch.from_numpy(dequantize(quantized)).transpose(1, 2).contiguous()
    damped = hessians.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    diagonal += torch.where(mean > 0, DAMPING * mean, torch.ones(()))
    gradient = damped @ (values - weights.float().transpose(1, 2))
    inverse = (1 / scales).clamp(max=torch.finfo(torch.float32).max)
    columns = values.shape[1]
    for _ in range(SWEEPS):
        for start in range(0, columns, _COLUMNS_AT_ONCE):
            stop = min(start + _COLUMNS_AT_ONCE, columns)
            before = values[:, start:stop].clone()
            own, local = gradient[:, start:stop].clone(), damped[:, start:stop, start:stop]
            for first in range(0, stop - start, _COLUMNS_IN_CACHE):
                some = slice(first, min(first + _COLUMNS_IN_CACHE, stop - start))
                near, steps = values[:, start:stop][:, some], scales[:, start:stop][:, some]
                _descend(near, own[:, some].clone(), local[:, some, some], steps)
                own.baddbmm_(local[:, :, some], near - before[:, some])
            gradient.baddbmm_(damped[:, :, start:stop], values[:, start:stop] - before)
    codes = encode(round_to_e2m1(values.abs() * inverse), values)
    return replace(quantized, weights=pack(codes))


def _descend(values: torch.Tensor, gradient: torch.Tensor, hessians: torch.Tensor, scales: torch.Tensor) -> None:
    """Moves `values` [B, C, N] column by column to the best multiple of their scales; `gradient` follows them."""
    for index in range(values.shape[1]):
        best = values[:, index] - gradient[:, index] / hessians[:, index, index, None]
        inverse = (1 / scales[:, index]).clamp(max=torch.finfo(torch.float32).max)
        rounded = (round_to_e2m1(best.abs() * inverse) * scales[:, index]).copysign(best)
        gradient.addcmul_(hessians[:, :, index, None], (rounded - values[:, index])[:, None])
        values[:, index] = rounded


def _scales(quantized: QuantizedWeights) -> torch.Tensor:
    """The scale of every weight, [B, K, N]."""
    blocks = decode_scales(torch.from_numpy(quantized.scales), get_format(quantized.format), torch.float32)
    if quantized.global_scale is not None:
        blocks = blocks * torch.from_numpy(np.asarray(quantized.global_scale))[:, None, None]
    return blocks.repeat_interleave(quantized.block_size, dim=2).transpose(1, 2).contiguous()
