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
            for index in range(start, stop):
                inside = index - start
                best = values[:, index] - own[:, inside] / diagonal[:, index, None]
                rounded = (round_to_e2m1(best.abs() * inverse[:, index]) * scales[:, index]).copysign(best)
                own += local[:, inside, :, None] * (rounded - values[:, index])[:, None]
                values[:, index] = rounded
            gradient += damped[:, :, start:stop] @ (values[:, start:stop] - before)
    codes = encode(round_to_e2m1(values.abs() * inverse), values)
    return replace(quantized, weights=pack(codes))


def _scales(quantized: QuantizedWeights) -> torch.Tensor:
    """The scale of every weight, [B, K, N]."""
    blocks = decode_scales(torch.from_numpy(quantized.scales), get_format(quantized.format), torch.float32)
    if quantized.global_scale is not None:
        blocks = blocks * torch.from_numpy(np.asarray(quantized.global_scale))[:, None, None]
    return blocks.repeat_interleave(quantized.block_size, dim=2).transpose(1, 2).contiguous()
