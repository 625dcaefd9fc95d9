"""What the export of a checkpoint can be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from onnx_moe.errors import ExportError, InvalidAttributeError
from onnx_moe.export.dense import check_dense
from onnx_moe.export.experts import Quantization
from onnx_moe.export.target import DECODER_OPSET
from onnx_moe.operators import EXPERT_GEMM, validate_attributes

#: Element types of what stays outside the experts.
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class CheckpointOptions:
    """Options of `export_checkpoint`; those that `onnx_moe.export` has too mean the same.

    format: None for the checkpoint's own FP4 format, or mxfp4 when it has none. dtype: float32 or float16, of
    everything outside the experts. attention: transformers' implementation to trace, sdpa or eager; None for sdpa where
    the architecture has it, which runs faster (docs/decoders.md). shard_bytes: size of the files of
    external data; an export that was interrupted goes on after its last whole file.
    """

    format: str | None = None
    block_size: int = 0
    scale: str = "mse"
    accuracy_level: int = 0
    weight_layout: str = "rows"
    dense: str = "float"
    fold_shared_experts: bool = True
    router_logits: bool = False
    functions: bool = True
    opset: int = DECODER_OPSET
    dtype: str = "float32"
    attention: str | None = None
    shard_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidAttributeError(f"dtype={self.dtype!r} is unknown: use one of {', '.join(DTYPES)}.")
        if self.attention not in (None, "sdpa", "eager"):
            raise InvalidAttributeError(f"attention={self.attention!r} is unknown: use sdpa or eager.")
        check_dense(self.dense)
        if self.shard_bytes <= 0:
            raise InvalidAttributeError(f"shard_bytes={self.shard_bytes} must be positive.")
        validate_attributes(EXPERT_GEMM, self.quantization(None).attributes())

    def quantization(self, own_format: str | None) -> Quantization:
        """How experts are written when the checkpoint holds them in `own_format`, or in no FP4 format."""
        if own_format is not None and self.format not in (None, own_format):
            raise ExportError(
                f"format={self.format!r}, but the checkpoint's experts are in {own_format} already: leave the format "
                "out to keep their bytes, or use the checkpoint in bfloat16."
            )
        format = own_format or self.format or "mxfp4"
        return Quantization(format, self.block_size, self.scale, self.accuracy_level, self.weight_layout)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
