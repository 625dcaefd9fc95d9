"""Torch mixture-of-experts models in ONNX Runtime: FP4 experts, exact routing, small files.

The names below load what they need on first use, so that `import onnx_moe` is quick and works without Torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_moe._native import library_path
    from onnx_moe.errors import OnnxMoeError
    from onnx_moe.export import export
    from onnx_moe.functions import strip_functions
    from onnx_moe.fusion import fuse
    from onnx_moe.next_gates import add_next_gates
    from onnx_moe.quantization import QuantizedWeights, dequantize, quantize
    from onnx_moe.session import InferenceSession, register

_HOMES = {
    "InferenceSession": "onnx_moe.session",
    "OnnxMoeError": "onnx_moe.errors",
    "QuantizedWeights": "onnx_moe.quantization",
    "add_next_gates": "onnx_moe.next_gates",
    "dequantize": "onnx_moe.quantization",
    "fuse": "onnx_moe.fusion",
    "library_path": "onnx_moe._native",
    "quantize": "onnx_moe.quantization",
    "register": "onnx_moe.session",
    "strip_functions": "onnx_moe.functions",
}

__all__ = [
    "InferenceSession",
    "OnnxMoeError",
    "QuantizedWeights",
    "add_next_gates",
    "dequantize",
    "export",
    "fuse",
    "library_path",
    "quantize",
    "register",
    "strip_functions",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("onnx-moe")
    if name == "export":  # the package is itself callable: see onnx_moe/export/__init__.py
        return importlib.import_module("onnx_moe.export")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'onnx_moe' has no attribute {name!r}")
