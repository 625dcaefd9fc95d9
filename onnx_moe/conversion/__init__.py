"""MoE nodes of other domains to those of onnx_moe."""

from __future__ import annotations

from onnx_moe.conversion.convert import convert

__all__ = ["convert"]
