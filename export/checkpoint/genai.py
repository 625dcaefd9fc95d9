"""genai_config.json: what onnxruntime-genai needs to run an exported folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnx_moe import _native

CONFIG_NAME = "genai_config.json"


def write_genai_config(folder: Path, config: Any, generation: Any, model: ir.Model) -> None:
    """Writes the configuration for `model` into `folder`, and puts the plugin beside it: genai loads it from there.

    config, generation: the checkpoint's configuration and generation configuration.
    """
    library = _native.library_path()
    shutil.copy2(library, folder / library.name)
    inputs = {value.name or "": value for value in model.graph.inputs}
    keys = [value for name, value in inputs.items() if name.startswith("past_key_values.") and name.endswith(".key")]
    shape = keys[0].shape if keys else None
    heads, head_size = (shape[1], shape[3]) if shape is not None else (0, 0)
    text = config.get_text_config()
    content = {
        "model": {
            "type": "decoder",
            "vocab_size": text.vocab_size,
            "context_length": getattr(text, "max_position_embeddings", 0) or 2048,
            "bos_token_id": _first(generation.bos_token_id, 0),
            "eos_token_id": _eos(generation, text),
            "pad_token_id": _first(generation.pad_token_id, _first(generation.eos_token_id, 0)),
            "decoder": {
                "session_options": {
                    "log_id": "onnx-moe",
                    "provider_options": [],
                    "custom_ops_library": library.name,
                },
                "filename": "model.onnx",
                "head_size": head_size,
                "hidden_size": text.hidden_size,
                "num_attention_heads": text.num_attention_heads,
                "num_hidden_layers": len(keys),
                "num_key_value_heads": heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": getattr(text, "max_position_embeddings", 0) or 2048,
            "do_sample": bool(generation.do_sample),
            "temperature": _number(generation.temperature, 1.0),
            "top_k": int(_number(generation.top_k, 50)),
            "top_p": _number(generation.top_p, 1.0),
            "past_present_share_buffer": False,
        },
    }
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _number(value: float | None, default: float) -> float:
    return default if value is None else value


def _first(value: int | list[int] | None, default: int) -> int:
    if isinstance(value, list):
        return value[0] if value else default
    return default if value is None else value


def _eos(generation: Any, config: Any) -> int | list[int]:
    value = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    return 0 if value is None else value
