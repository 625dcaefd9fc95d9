"""Decoding FP4 weights: W[e, n, k] = E2M1 code * block scale."""

from __future__ import annotations

import torch

from onnx_moe.errors import InvalidInputError
from onnx_moe.formats import E2M1_VALUES, Fp4Format, get_format


def decode_weights(
    weights: torch.Tensor,
    scales: torch.Tensor,
    format: str,
    block_size: int = 0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Weights [..., N, K] in `dtype`.

    weights: uint8 [..., N, K/2], two codes to a byte, the low nibble holding the even k.
    scales: [..., N, K/block], uint8 (E8M0 for mxfp4, E4M3 for nvfp4) or float16 (fp4).
    block_size: 0 means the format's own.
    """
    fp4_format = get_format(format)
    block_size = fp4_format.resolve_block_size(block_size)
    check_weights(weights, scales, fp4_format, block_size)
    blocks = decode_codes(weights, dtype).reshape(*scales.shape, block_size)
    return (blocks * decode_scales(scales, fp4_format, dtype).unsqueeze(-1)).flatten(-2)


def decode_codes(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The E2M1 values [..., K] of bytes [..., K/2]."""
    values = torch.tensor(E2M1_VALUES, dtype=dtype, device=weights.device)
    codes = torch.stack((weights & 0x0F, weights >> 4), dim=-1).flatten(-2)
    return values[codes.int()]


def decode_scales(scales: torch.Tensor, fp4_format: Fp4Format, dtype: torch.dtype) -> torch.Tensor:
    """The values of the block scales, in their shape."""
    if fp4_format.scale_values is None:
        return scales.to(dtype)
    return torch.tensor(fp4_format.scale_values, dtype=dtype, device=scales.device)[scales.int()]


def check_weights(weights: torch.Tensor, scales: torch.Tensor, fp4_format: Fp4Format, block_size: int) -> None:
    """InvalidInputError unless `weights` and `scales` fit each other and the format."""
    if weights.dtype != torch.uint8:
        raise InvalidInputError(f"weights have dtype {weights.dtype}: E2M1 codes come as uint8, two to a byte.")
    scale_dtype = getattr(torch, fp4_format.scale_type)
    if scales.dtype != scale_dtype:
        raise InvalidInputError(f"scales have dtype {scales.dtype}: format {fp4_format.name!r} takes {scale_dtype}.")
    columns = 2 * weights.shape[-1]
    if columns % block_size:
        raise InvalidInputError(
            f"weights have K={columns} columns, which block_size={block_size} does not divide: pad K with zeros."
        )
    expected = (*weights.shape[:-1], columns // block_size)
    if tuple(scales.shape) != expected:
        raise InvalidInputError(
            f"scales have shape {list(scales.shape)}: weights of shape {list(weights.shape)} in blocks of "
            f"{block_size} take {list(expected)}."
        )
