"""A Hugging Face causal language model as a decoder with its KV cache in and out."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from onnx_moe.errors import ExportError


@dataclass(frozen=True)
class CacheLayer:
    """Heads and width of a layer's cached key and value (multi-head latent attention caches the latent instead)."""

    key_heads: int
    key_width: int
    value_heads: int
    value_width: int


class Decoder(torch.nn.Module):
    """(input_ids [B, S], attention_mask [B, P + S], past) → logits [B, S, V], then each layer's present key and value.

    past: a (key, value) for each layer, [B, heads, P, width]. Position ids follow from the attention mask, so that
    rows may be padded on the left.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.cache_name = cache_name(model)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, ...]:
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=True,
            **{self.cache_name: _cache(past)},
        )
        layers = output[self.cache_name].layers
        return (output.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def _cache(past: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()  # without a configuration: layers that keep everything, whose trace has no branches
    for keys, values in past:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)  # sets what else the layer keeps, which differs between versions
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def cache_name(model: torch.nn.Module) -> str:
    """What forward and its output call the cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def is_decoder(module: torch.nn.Module) -> bool:
    """Whether `module` is a causal language model of transformers."""
    return hasattr(module, "generate") and hasattr(getattr(module, "config", None), "vocab_size")


def cache_layers(model: Any) -> list[CacheLayer]:
    """The cache's shapes, seen on a run of two tokens."""
    with torch.no_grad():
        output = model(input_ids=torch.ones(1, 2, dtype=torch.long), use_cache=True, logits_to_keep=1)
    layers = getattr(output.get(cache_name(model)), "layers", [])
    if not layers or not all(getattr(layer, "keys", None) is not None for layer in layers):
        raise ExportError(
            f"{type(model).__name__} keeps another state than keys and values for each layer: export its blocks or "
            "layers instead."
        )
    return [
        CacheLayer(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[1], layer.values.shape[3])
        for layer in layers
    ]


@dataclass(frozen=True)
class DecoderInputs:
    """What torch.onnx.export needs to export a Decoder."""

    example: tuple[Any, ...]
    dynamic_shapes: dict[str, Any]
    input_names: list[str]
    output_names: list[str]


def decoder_inputs(layers: list[CacheLayer], dtype: torch.dtype) -> DecoderInputs:
    """Example inputs of 2 rows, 4 past and 3 new tokens, every one of these sizes dynamic."""
    batch, past_tokens, tokens = 2, 4, 3
    dims = {name: torch.export.Dim(name) for name in ("batch", "past_length", "sequence_length")}
    past = [
        (
            torch.zeros(batch, layer.key_heads, past_tokens, layer.key_width, dtype=dtype),
            torch.zeros(batch, layer.value_heads, past_tokens, layer.value_width, dtype=dtype),
        )
        for layer in layers
    ]
    cache_shape = {0: dims["batch"], 2: dims["past_length"]}
    names = [f"{index}.{kind}" for index in range(len(layers)) for kind in ("key", "value")]
    return DecoderInputs(
        example=(
            torch.ones(batch, tokens, dtype=torch.long),
            torch.ones(batch, past_tokens + tokens, dtype=torch.long),
            past,
        ),
        dynamic_shapes={
            "input_ids": {0: dims["batch"], 1: dims["sequence_length"]},
            # The sum of both lengths, which torch.export works out by itself.
            "attention_mask": {0: dims["batch"], 1: torch.export.Dim.DYNAMIC},
            "past": [(cache_shape, cache_shape) for _ in layers],
        },
        input_names=["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
    )
