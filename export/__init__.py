"""Torch and Hugging Face MoE models → ONNX files with FP4 experts.

`onnx_moe.export` is both this package and the function that it is named for.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from onnx_moe.export.adapters import register_adapter
from onnx_moe.export.api import ExportReport, export, with_fp4_weights
from onnx_moe.export.exported_layers import ExportedLayer
from onnx_moe.export.layers import ExpertLayer, Projection, RunExperts

__all__ = [
    "ExpertLayer",
    "ExportReport",
    "ExportedLayer",
    "Projection",
    "RunExperts",
    "export",
    "register_adapter",
    "with_fp4_weights",
]


class _CallablePackage(types.ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> ExportReport:
        return export(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
