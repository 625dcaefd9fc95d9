"""Blocks whose experts hold FP4 numbers: an export of them loses nothing, so it must compute what Torch computes.

Unlike `with_fp4_weights`, this shares no code with the exporter: it shows that each weight is where it belongs and
that blocks run along K.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onnx_moe
from onnx_moe.formats import E2M1_VALUES
from tools.model_table.architectures import make_model

from .models import BLOCK_MODELS, moe_block

_BLOCK = 32

#: The router, two products and, in the expectation, Torch's own router in float32: 1e-6 each.
TOLERANCE = 4e-6


@pytest.mark.parametrize("model_type", BLOCK_MODELS)
def test_exact_weights(model_type: str, tmp_path: Path) -> None:
    block = moe_block(make_model(model_type))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        _give_fp4_weights(block, generator)
    example, x = torch.zeros(2, 3, 64), torch.randn(3, 7, 64, generator=generator)
    path = onnx_moe.export(block, (example,), tmp_path / "block.onnx", dynamic_shapes=({0: "b", 1: "s"},)).path

    session = onnx_moe.InferenceSession(path)
    actual = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        exact: Any = copy.deepcopy(block).double()
        exact.experts.config._experts_implementation = "eager"  # the others do not run in float64
        output = exact(x.double())
    expected = (output[0] if isinstance(output, tuple) else output).numpy()
    assert np.linalg.norm(actual - expected) <= TOLERANCE * np.linalg.norm(expected)


def _give_fp4_weights(block: Any, generator: torch.Generator) -> None:
    """FP4 numbers for the routed and the shared experts' projections."""
    experts = block.experts
    for parameter in (experts.gate_up_proj, experts.down_proj):
        stored = parameter.transpose(1, 2) if experts.is_transposed else parameter
        stored.copy_(_fp4_numbers(stored.shape, generator))
    if hasattr(block, "shared_experts"):
        for parameter in block.shared_experts.parameters():
            parameter.copy_(_fp4_numbers(parameter.shape, generator))


def _fp4_numbers(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Random [..., N, K]: E2M1 values times a power of two for each block along K; every block holds a 6.

    Scales differ by up to 8 from block to block, so that these are no FP4 numbers along another axis.
    """
    blocks = (*shape[:-1], shape[-1] // _BLOCK)
    codes = torch.randint(0, 16, (*blocks, _BLOCK), generator=generator)
    codes[..., 0] = E2M1_VALUES.index(6.0)
    exponents = torch.randint(-6, -2, blocks, generator=generator)
    return (torch.tensor(E2M1_VALUES)[codes] * torch.exp2(exponents.float()).unsqueeze(-1)).reshape(shape)
