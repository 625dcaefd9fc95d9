"""How a checkpoint encodes a weight: plain numbers, FP4 codes with scales, or FP8 with scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from onnx_moe.export.checkpoint.files import CheckpointFiles, StoredTensor
from onnx_moe.quantization import QuantizedWeights, dequantize


class Weight(Protocol):
    """A weight of the model as a checkpoint holds it: shape and stored bytes, whatever its encoding."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def parts(self) -> tuple[StoredTensor, ...]: ...

    def read(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        """The numbers themselves, or those of `rows` along the first dimension."""
        ...


@dataclass(frozen=True)
class _StoredWeight:
    """A weight of a stored tensor's name and shape."""

    stored: StoredTensor

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape


class PlainWeight(_StoredWeight):
    """Floating-point numbers, or whatever the model has there."""

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return (self.stored,)

    def read(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        return files.read(self.stored, rows)


@dataclass(frozen=True)
class Fp4Weight:
    """E2M1 codes and block scales: [N, K], or [E, N, K] for all experts in one tensor.

    transposed: the model's parameter is [E, K, N] (gpt-oss). divides: the global scale divides (compressed-tensors).
    """

    name: str
    format: str
    codes: StoredTensor
    scales: StoredTensor
    global_scale: StoredTensor | None = None
    divides: bool = False
    transposed: bool = False

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """[..., N, K]."""
        leading = self.scales.shape[:-1]
        columns = 2
        for size in self.codes.shape[len(leading) :]:
            columns *= size
        return (*leading, columns)

    @property
    def shape(self) -> tuple[int, ...]:
        *leading, rows, columns = self.matrix_shape
        return (*leading, columns, rows) if self.transposed else self.matrix_shape

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return tuple(part for part in (self.codes, self.scales, self.global_scale) if part is not None)

    def read_codes(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        """uint8 [..., N, K/2]."""
        codes = files.read(self.codes, rows).view(torch.uint8)
        return codes.reshape(*codes.shape[: len(self.scales.shape) - 1], -1)

    def read_scales(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        """uint8 [..., N, K/block]."""
        return files.read(self.scales, rows).view(torch.uint8)

    def read_global_scale(self, files: CheckpointFiles) -> float:
        """What multiplies: 1 where the layout has none."""
        if self.global_scale is None:
            return 1.0
        value = files.read(self.global_scale).float().reshape(())
        return float(1 / value) if self.divides else float(value)

    def read(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        codes, scales = self.read_codes(files, rows), self.read_scales(files, rows)
        global_scale = torch.full(codes.shape[:-2], self.read_global_scale(files), dtype=torch.float32)
        values = torch.from_numpy(
            dequantize(
                QuantizedWeights(
                    codes.numpy(),
                    scales.numpy(),
                    global_scale.numpy() if self.format == "nvfp4" else None,
                    self.format,
                    0,
                )
            )
        )
        return values.transpose(-1, -2) if self.transposed else values


#: Rows or columns to a scale of FP8: blocks of DeepSeek-V3, and those of MXFP8.
FP8_BLOCKS = (128, 32)


@dataclass(frozen=True)
class Fp8Weight(_StoredWeight):
    """E4M3 numbers [N, K] with a scale for each block, the last of which may be smaller, for each row, or for all."""

    scale: StoredTensor

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return (self.stored, self.scale)

    @property
    def blocks(self) -> tuple[int, int] | None:
        """Rows and columns to a scale; None where the shapes do not fit."""
        if self.scale.shape in ((), (1,)):
            return self.shape[0], self.shape[1]
        if self.scale.shape == self.shape[:1]:
            return 1, self.shape[1]
        if len(self.scale.shape) != 2:
            return None
        rows, columns = (_block(size, count) for size, count in zip(self.shape, self.scale.shape, strict=True))
        return (rows, columns) if rows and columns else None

    def read(self, files: CheckpointFiles, rows: range | None = None) -> torch.Tensor:
        values, scale = files.read(self.stored, rows).float(), files.read(self.scale).float()
        assert self.blocks is not None
        scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
        for dimension, block in enumerate(self.blocks):
            scale = scale.repeat_interleave(block, dimension)
        first = rows.start if rows is not None else 0
        return values * scale[first : first + values.shape[0], : values.shape[1]]


def _block(size: int, count: int) -> int:
    """How many of `size` rows or columns share one of `count` scales; 0 if no known size of blocks makes so many."""
    if count in (1, size):
        return size // count
    return next((block for block in FP8_BLOCKS if -(-size // block) == count), 0)
