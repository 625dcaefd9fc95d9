"""Experts evaluated in float64, and the error of their weights against what the format leads one to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_moe.accuracy.exported import LayerRun
from onnx_moe.formats import E2M1_VALUES, get_format

#: Blocks of a matrix that the expectation is taken over.
_SAMPLED_BLOCKS = 512


@dataclass(frozen=True)
class Experts:
    """Weights of a layer's experts [E, N, K], biases [E, N] or None, and what is done between the products."""

    up: torch.Tensor
    down: torch.Tensor
    activation: Callable[[torch.Tensor], torch.Tensor]
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def evaluate(self, run: LayerRun) -> NDArray[np.float64]:
        """y [T, H] in float64 for the inputs and the routing of `run`."""
        x, ids = torch.from_numpy(run.x).double(), torch.from_numpy(run.ids)
        weights = torch.from_numpy(run.weights).double()
        y = torch.zeros(len(x), self.down.shape[1], dtype=torch.float64)
        for expert in torch.unique(ids).tolist():
            tokens, slots = (ids == expert).nonzero(as_tuple=True)
            hidden = x[tokens] @ self.up[expert].double().T
            if self.up_bias is not None:
                hidden = hidden + self.up_bias[expert].double()
            output = self.activation(hidden) @ self.down[expert].double().T
            if self.down_bias is not None:
                output = output + self.down_bias[expert].double()
            y.index_add_(0, tokens, output * weights[tokens, slots, None])
        return y.numpy()


def relative_rmse(decoded: torch.Tensor, original: torch.Tensor) -> list[float]:
    """|decoded - original| / |original| of each matrix of [E, N, K]; one of zeros counts by its absolute error."""
    # A matrix at a time: in float64 all experts of a layer take gigabytes.
    pairs = ((now.double(), was.double()) for now, was in zip(decoded, original, strict=True))
    return [float((now - was).norm()) / (float(was.norm()) or 1.0) for now, was in pairs]


def expected_rmse(original: torch.Tensor, format: str, block_size: int) -> list[float]:
    """What an ideal quantiser of `format` leaves of each matrix [E, N, K]: the best real scale of each block for
    mxfp4's powers of two, or any scale at all for formats whose scales have a mantissa; on a sample of blocks.

    An implementation of its own, in float64 on tables: it shares nothing with the quantiser under test.
    """
    block = get_format(format).resolve_block_size(block_size)
    generator = torch.Generator().manual_seed(0)
    expected = []
    for matrix in original:
        blocks = matrix.reshape(-1, block)
        if len(blocks) > _SAMPLED_BLOCKS:  # at random: every so-manieth block would be of the same few columns
            blocks = blocks[torch.randint(len(blocks), (_SAMPLED_BLOCKS,), generator=generator)]
        blocks = blocks.double().abs()
        largest = blocks.amax(dim=1).clamp(min=1e-30)
        if format == "mxfp4":
            exponents = torch.floor(torch.log2(largest)) - 2
            candidates = [torch.exp2(exponents + step) for step in (-1, 0, 1)]
        else:
            candidates = [largest / 6 * float(factor) for factor in np.linspace(0.75, 1.75, 17)]
        errors = torch.stack([_squared_error(blocks, scale) for scale in candidates]).amin(dim=0)
        expected.append(float((errors.sum() / blocks.square().sum().clamp(min=1e-300)).sqrt()))
    return expected


def _squared_error(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    values = torch.tensor(E2M1_VALUES[:8], dtype=torch.float64)
    middles = (values[1:] + values[:-1]) / 2
    scaled = blocks / scales[:, None]
    nearest = values[torch.bucketize(scaled, middles)]
    return ((nearest - scaled) * scales[:, None]).square().sum(dim=1)
