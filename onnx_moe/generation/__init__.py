"""Text from exported decoders, on plain ONNX Runtime."""

from __future__ import annotations

from onnx_moe.generation.decoder import Cache, DecoderSession
from onnx_moe.generation.folder import ModelFolder
from onnx_moe.generation.genai_config import make_genai_config, write_genai_config
from onnx_moe.generation.generate import Timing, generate_tokens
from onnx_moe.generation.sampling import Sampling

__all__ = [
    "Cache",
    "DecoderSession",
    "ModelFolder",
    "Sampling",
    "Timing",
    "generate_tokens",
    "make_genai_config",
    "write_genai_config",
]
