"""Calibrating one layer of GLM-4.7-Flash's size, on synthetic activations: python -m bench.calibration."""

from __future__ import annotations

import resource
import time
from typing import Annotated

import torch
import typer
from rich.console import Console

from onnx_moe.export.calibration import MAX_WINDOWS, WINDOW_TOKENS
from onnx_moe.export.calibration_activations import Activations
from onnx_moe.export.calibration_layer import calibrate_layer
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


def random_activations(tokens: int, num_experts: int) -> tuple[Activations, torch.Tensor]:
    """What reaches the experts, and the hidden states of the same tokens before quantising: correlated columns of which
    some are large, a tenth of noise from the layers before, and a router that likes some experts better than others."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randn(_HIDDEN, generator=generator).exp()
    original = torch.randn(tokens, 256, generator=generator) @ torch.randn(256, _HIDDEN, generator=generator) / 16
    original += 0.3 * torch.randn(tokens, _HIDDEN, generator=generator)
    original *= sizes
    rows = original + 0.1 * sizes * torch.randn(tokens, _HIDDEN, generator=generator)
    scores = rows @ torch.randn(_HIDDEN, num_experts, generator=generator) / _HIDDEN**0.5
    chosen = (scores + torch.randn(num_experts, generator=generator)).sigmoid().topk(_TOP_K)
    weights = chosen.values / chosen.values.sum(dim=-1, keepdim=True)
    return Activations(rows, chosen.indices, weights), original


def main(
    experts: Annotated[int, typer.Option(help="Of the layer; GLM-4.7-Flash has 64.")] = 64,
    tokens: Annotated[int, typer.Option(help="Default: as many as the exporter reads of a long text.")] = (
        WINDOW_TOKENS * MAX_WINDOWS
    ),
    format: Annotated[str, typer.Option(help="mxfp4 or nvfp4.")] = "mxfp4",
) -> None:
    """Seconds that calibrating one layer takes, without running the model."""
    console = Console(highlight=False)
    layer, (activations, original) = random_layer(experts), random_activations(tokens, experts)
    loads = torch.bincount(activations.expert_ids.flatten(), minlength=experts)
    console.print(
        f"{experts} experts of {_HIDDEN} × {_INTERMEDIATE}, {tokens} tokens: {loads.min()} to {loads.max()} an expert, "
        f"{format}, {torch.get_num_threads()} threads"
    )
    start = time.perf_counter()
    calibrate_layer(layer, activations, original, Quantization(format, 0, "mse", 0))
    console.print(
        f"{time.perf_counter() - start:.1f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20} GiB"
    )


if __name__ == "__main__":
    typer.run(main)
