"""Calibrating one layer of GLM-4.7-Flash's size, on synthetic activations: python -m bench.calibration."""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer
from rich.console import Console

from onnx_moe.export.calibration import calibrate_layer
from onnx_moe.export.calibration_activations import Activations
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.experts import Quantization
from onnx_moe.export.layers import ExpertLayer, Projection

_HIDDEN, _INTERMEDIATE, _TOP_K = 2048, 1536, 4


def random_layer(num_experts: int) -> MoELayer:
    """Experts of GLM-4.7-Flash's sizes in bfloat16, with random weights."""
    generator = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        matrices = torch.empty(*shape, dtype=torch.bfloat16)
        for matrix in matrices:
            matrix.copy_(0.02 * torch.randn(shape[1:], generator=generator))
        return matrices

    up = Projection(weights(num_experts, 2 * _INTERMEDIATE, _HIDDEN))
    down = Projection(weights(num_experts, _HIDDEN, _INTERMEDIATE))
    activation = {"activation": "silu", "gated": 1, "gate_layout": "concatenated"}
    return MoELayer("layer", torch.nn.Module(), ExpertLayer(up, down, activation), _TOP_K)


def random_activations(tokens: int, num_experts: int) -> Activations:
    """Correlated rows, each routed to four experts."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(tokens, 256, generator=generator) @ torch.randn(256, _HIDDEN, generator=generator) / 16
    rows += 0.3 * torch.randn(tokens, _HIDDEN, generator=generator)
    scores = torch.rand(tokens, num_experts, generator=generator)
    chosen = scores.topk(_TOP_K)
    return Activations(rows, chosen.indices, chosen.values / chosen.values.sum(dim=-1, keepdim=True))


def main(
    experts: Annotated[int, typer.Option(help="Of the layer; GLM-4.7-Flash has 64.")] = 64,
    tokens: Annotated[int, typer.Option(help="Of the calibration text.")] = 8192,
    format: Annotated[str, typer.Option(help="mxfp4 or nvfp4.")] = "mxfp4",
) -> None:
    """Seconds that the second-order pass of one layer takes, without running the model."""
    layer, activations = random_layer(experts), random_activations(tokens, experts)
    start = time.perf_counter()
    calibrate_layer(layer, activations, activations.hidden_states, Quantization(format, 0, "mse", 0))
    seconds = time.perf_counter() - start
    Console().print(
        f"{experts} experts of {_HIDDEN} × {_INTERMEDIATE}, {tokens} tokens, {format}: {seconds:.1f} s on "
        f"{torch.get_num_threads()} threads",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
