"""Whole checkpoints, larger than memory, to folders with an ONNX model."""

from __future__ import annotations

from onnx_moe.export.checkpoint.api import CheckpointReport, Progress, export_checkpoint
from onnx_moe.export.checkpoint.options import CheckpointOptions

__all__ = ["CheckpointOptions", "CheckpointReport", "Progress", "export_checkpoint"]
