"""genai_config.json: what onnxruntime-genai needs to know of an exported folder.

https://onnxruntime.ai/docs/genai/reference/config.html; names of recurrent states as in its model builder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnx_moe import _native
from onnx_moe.errors import InvalidModelError
from onnx_moe.generation.folder import MODEL_NAME, read_json

CONFIG_NAME = "genai_config.json"

#: The model type under which onnxruntime-genai keeps attention and recurrent states side by side.
_HYBRID_TYPE = "qwen3_5_text"

#: Tensors of a layer's cache → how genai_config.json calls the template of their names.
_TEMPLATES = {"key": "key", "value": "value", "conv_state": "conv", "recurrent_state": "recurrent"}


def write_genai_config(folder: Path, model_name: str = MODEL_NAME, config: Mapping[str, Any] | None = None) -> Path:
    """Writes genai_config.json into `folder`, made from its model, config.json and generation_config.json, and puts
    the plugin beside it: onnxruntime-genai loads libraries from there only. Returns the file's path.

    config: with every value that config.json leaves to the architecture's default; by default just what it holds.
    Raises InvalidModelError when onnxruntime-genai cannot run the model, and says why.
    """
    library = _native.library_path()
    if config is None:
        config = read_json(folder / "config.json")
    generation = read_json(folder / "generation_config.json")
    content = make_genai_config(ir.load(folder / model_name), config, generation, library.name, model_name)
    shutil.copy2(library, folder / library.name)
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def make_genai_config(
    model: ir.Model,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    library_name: str,
    model_name: str = MODEL_NAME,
) -> dict[str, Any]:
    """The content of genai_config.json for a decoder.

    config, generation: of the checkpoint, as its config.json and generation_config.json hold them. library_name: of
    the plugin, beside the model. Raises InvalidModelError when onnxruntime-genai cannot run the model.
    """
    text = {**config, **config.get("text_config", {})}
    cache = _cache_shapes(model)
    end_tokens = generation.get("eos_token_id", text.get("eos_token_id"))
    length = text.get("max_position_embeddings") or 2048
    return {
        "model": {
            "type": "decoder" if _layer_types(cache) is None else _HYBRID_TYPE,
            "vocab_size": _entry(text, "vocab_size"),
            "context_length": length,
            "bos_token_id": _first(generation.get("bos_token_id", text.get("bos_token_id")), 0),
            "eos_token_id": 0 if end_tokens is None else end_tokens,
            "pad_token_id": _first(generation.get("pad_token_id", text.get("pad_token_id")), _first(end_tokens, 0)),
            "decoder": _decoder(text, cache, library_name, model_name),
        },
        "search": {
            "max_length": length,
            "do_sample": bool(generation.get("do_sample", False)),
            "temperature": _or(generation.get("temperature"), 1.0),
            "top_k": _or(generation.get("top_k"), 50),
            "top_p": _or(generation.get("top_p"), 1.0),
            "past_present_share_buffer": False,
        },
    }


def _decoder(
    text: Mapping[str, Any], cache: Mapping[int, Mapping[str, Any]], library_name: str, model_name: str
) -> dict[str, Any]:
    attention = next((shapes for shapes in cache.values() if "key" in shapes), None)
    if attention is None:
        raise InvalidModelError("onnxruntime-genai needs a layer of attention: this model's cache has no keys.")
    heads, head_size = attention["key"][1], attention["key"][3]
    decoder: dict[str, Any] = {
        "session_options": {"log_id": "onnx-moe", "provider_options": [], "custom_ops_library": library_name},
        "filename": model_name,
        "head_size": head_size,
        "hidden_size": _entry(text, "hidden_size"),
        "num_attention_heads": _entry(text, "num_attention_heads"),
        "num_hidden_layers": len(cache),
        "num_key_value_heads": heads,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **_names(cache, "past")},
        "outputs": {"logits": "logits", **_names(cache, "present")},
    }
    hybrid = _layer_types(cache)
    return decoder if hybrid is None else {**decoder, "layer_types": hybrid}


def _entry(text: Mapping[str, Any], name: str) -> Any:
    if text.get(name) is None:
        raise InvalidModelError(f"The model's configuration has no {name}, which {CONFIG_NAME} holds: add it.")
    return text[name]


def _cache_shapes(model: ir.Model) -> dict[int, dict[str, list[Any]]]:
    """Shapes of each layer's cached tensors by layer and name."""
    shapes: dict[int, dict[str, list[Any]]] = {}
    for value in model.graph.inputs:
        prefix, _, rest = (value.name or "").partition(".")
        if prefix == "past_key_values" and value.shape is not None:
            layer, _, name = rest.partition(".")
            shapes.setdefault(int(layer), {})[name] = [
                size if isinstance(size, int) else str(size) for size in value.shape
            ]
    for number, held in shapes.items():
        unknown = sorted(held.keys() - _TEMPLATES.keys())
        if unknown:
            raise InvalidModelError(
                f"onnxruntime-genai keeps no {', '.join(unknown)}, which layer {number} of this model needs: run it "
                "with onnx_moe.generation."
            )
        if "recurrent_state" in held and "conv_state" not in held:
            raise InvalidModelError(
                f"onnxruntime-genai keeps recurrent states only beside those of convolutions, which layer {number} of "
                "this model does not have: run it with onnx_moe.generation."
            )
    return shapes


def _names(cache: Mapping[int, Mapping[str, Any]], time: str) -> dict[str, str]:
    prefix = "past_key_values" if time == "past" else "present"
    present = [name for name in _TEMPLATES if any(name in held for held in cache.values())]
    return {f"{time}_{_TEMPLATES[name]}_names": f"{prefix}.%d.{name}" for name in present}


def _layer_types(cache: Mapping[int, Mapping[str, Any]]) -> list[str] | None:
    """What each layer keeps, where layers differ."""
    if all(held.keys() == {"key", "value"} for held in cache.values()):
        return None
    return ["full_attention" if "key" in held else "linear_attention" for _, held in sorted(cache.items())]


def _first(value: Any, default: int) -> int:
    if isinstance(value, list):
        value = value[0] if value else None
    return default if value is None else int(value)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
