"""Other quantisers to mxfp4 and nvfp4: each makes of float32 weights [N, K] the values that its codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions

import torch
from rich.console import Console

_PACKAGES = ("torchao", "nvidia-modelopt", "compressed-tensors")


@dataclass(frozen=True)
class Quantiser:
    """One way to quantise. run: weights [N, K] → decoded values [N, K]."""

    name: str
    format: str
    run: Callable[[torch.Tensor], torch.Tensor]
    is_ours: bool = False


class Missing(Exception):
    """A peer's package is not installed: which, and how to install it."""


def _decoded(codes: torch.Tensor, scales: torch.Tensor, format: str) -> torch.Tensor:
    """Values of packed codes uint8 [N, K/2] and scales as stored, decoded by the package's Torch reference."""
    from onnx_moe.reference.decode import decode_weights

    scales = scales.view(torch.uint8).reshape(len(codes), -1)
    return decode_weights(codes.view(torch.uint8).reshape(len(codes), -1), scales, format)


def torchao() -> list[Quantiser]:
    """Its cast of weights: mxfp4 by each of its rules, nvfp4 with a global scale."""
    try:
        from torchao.prototype.mx_formats.config import ScaleCalculationMode
        from torchao.prototype.mx_formats.mx_tensor import to_mx
        from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale
    except ImportError as error:
        raise Missing(f"torchao is missing ({error}): pip install torchao") from error

    def mxfp4(mode: ScaleCalculationMode) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(weights: torch.Tensor) -> torch.Tensor:
            scales, codes = to_mx(weights, torch.float4_e2m1fn_x2, 32, mode)
            return _decoded(codes, scales, "mxfp4")

        return run

    def nvfp4(weights: torch.Tensor) -> torch.Tensor:
        global_scale = per_tensor_amax_to_scale(weights.abs().max())
        scales, codes = nvfp4_quantize(weights, 16, global_scale)
        return _decoded(codes, scales, "nvfp4") * global_scale

    modes = (ScaleCalculationMode.FLOOR, ScaleCalculationMode.RCEIL, ScaleCalculationMode.EVEN)
    return [
        *(Quantiser(f"torchao, {mode.name.lower()}", "mxfp4", mxfp4(mode)) for mode in modes),
        Quantiser("torchao", "nvfp4", nvfp4),
    ]


def modelopt() -> list[Quantiser]:
    """NVIDIA ModelOpt's cast of weights."""
    try:
        from modelopt.torch.quantization.qtensor import MXFP4QTensor, NVFP4QTensor
    except ImportError as error:
        raise Missing(f"ModelOpt is missing ({error}): pip install nvidia-modelopt") from error

    def mxfp4(weights: torch.Tensor) -> torch.Tensor:
        quantized, scales = MXFP4QTensor.quantize(weights, 32)
        return quantized.dequantize(dtype=torch.float32, scale=scales, block_sizes={-1: 32})

    def nvfp4(weights: torch.Tensor) -> torch.Tensor:
        quantized, scales, global_scale = NVFP4QTensor.quantize(weights, 16)
        return quantized.dequantize(dtype=torch.float32, scale=scales, double_scale=global_scale, block_sizes={-1: 16})

    return [Quantiser("ModelOpt", "mxfp4", mxfp4), Quantiser("ModelOpt", "nvfp4", nvfp4)]


def compressed_tensors() -> list[Quantiser]:
    """compressed-tensors' schemes MXFP4A16 and NVFP4A16, with scales from each block's maximum."""
    try:
        from compressed_tensors.quantization.lifecycle.forward import fake_quantize
        from compressed_tensors.quantization.quant_scheme import MXFP4A16, NVFP4A16
        from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam
    except ImportError as error:
        raise Missing(f"compressed-tensors is missing ({error}): pip install compressed-tensors") from error

    def mxfp4(weights: torch.Tensor) -> torch.Tensor:
        options = MXFP4A16["weights"]
        blocks = weights.unflatten(-1, (-1, 32))
        scales, zeros = calculate_qparams(blocks.amin(-1), blocks.amax(-1), options)
        return fake_quantize(weights, scales, zeros, options)

    def nvfp4(weights: torch.Tensor) -> torch.Tensor:
        options = NVFP4A16["weights"]
        blocks = weights.unflatten(-1, (-1, 16))
        global_scale = generate_gparam(weights.min(), weights.max())
        scales, zeros = calculate_qparams(blocks.amin(-1), blocks.amax(-1), options, global_scale=global_scale)
        return fake_quantize(weights, scales, zeros, options, global_scale=global_scale)

    return [Quantiser("compressed-tensors", "mxfp4", mxfp4), Quantiser("compressed-tensors", "nvfp4", nvfp4)]


def installed_peers(console: Console) -> list[Quantiser]:
    """Those whose packages are there; the console says which are not."""
    return [quantiser for peer in (torchao, modelopt, compressed_tensors) for quantiser in _try(peer, console)]


def installed_versions() -> str:
    """The peers' packages with their versions, as far as they are there."""
    found = {distribution.name: distribution.version for distribution in distributions()}
    return ", ".join(f"{name} {found.get(name, 'missing')}" for name in _PACKAGES)


def _try(peer: Callable[[], list[Quantiser]], console: Console) -> list[Quantiser]:
    try:
        return peer()
    except Missing as missing:
        console.print(f"[yellow]left out:[/] {missing}", highlight=False)
        return []


def ours() -> list[Quantiser]:
    """`onnx_moe.quantize` as it is used by default."""
    from onnx_moe import dequantize, quantize

    def run(format: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda weights: torch.from_numpy(dequantize(quantize(weights, format)))

    return [Quantiser("onnx-moe", format, run(format), is_ours=True) for format in ("mxfp4", "nvfp4")]
