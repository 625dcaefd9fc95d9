"""A Hugging Face causal language model as a decoder with its cache in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from onnx_moe.export.kv_cache import TOKENS, CacheLayout, cache_name, find_cache_layout
from onnx_moe.export.text_model import TextModel, find_text_model
from onnx_moe.export.tracing import traceable


class Decoder(torch.nn.Module):
    """(input_ids [B, S], attention_mask [B, P + S], past) → logits [B, S, V], then the cache's tensors.

    past: the tensors of `layout`, in its order. Position ids follow from the attention mask, so that rows may be
    padded on the left.
    """

    def __init__(self, model: torch.nn.Module, layout: CacheLayout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        cache = self.layout.build(past)
        with traceable(self.model):
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=positions,
                use_cache=True,
                **{cache_name(self.model): cache},
            )
        return (output.logits, *self.layout.read(cache))


def find_decoder(module: torch.nn.Module) -> torch.nn.Module | None:
    """`module` if it is a causal language model of transformers, the text model of a multimodal one, else None."""
    if isinstance(module, TextModel) or (
        hasattr(module, "generate") and hasattr(getattr(module, "config", None), "vocab_size")
    ):
        return module
    return find_text_model(module)


@dataclass(frozen=True)
class DecoderInputs:
    """What torch.onnx.export needs to export a Decoder."""

    example: tuple[Any, ...]
    dynamic_shapes: dict[str, Any]
    input_names: list[str]
    output_names: list[str]


def decoder_inputs(layout: CacheLayout) -> DecoderInputs:
    """Example inputs of 2 rows, 4 past and 3 new tokens, every one of these sizes dynamic."""
    batch, past_tokens, tokens = 2, 4, 3
    lengths = [tensor.length for tensor in layout.tensors if tensor.axis is not None]
    dims = {name: torch.export.Dim(name) for name in ("batch", "sequence_length", *lengths)}
    shapes = [
        {0: dims["batch"]} | ({} if tensor.axis is None else {tensor.axis: dims[tensor.length]})
        for tensor in layout.tensors
    ]
    return DecoderInputs(
        example=(
            torch.ones(batch, tokens, dtype=torch.long),
            torch.ones(batch, past_tokens + tokens, dtype=torch.long),
            [tensor.example(batch, past_tokens if tensor.length == TOKENS else 2) for tensor in layout.tensors],
        ),
        dynamic_shapes={
            "input_ids": {0: dims["batch"], 1: dims["sequence_length"]},
            # The sum of both lengths, which torch.export works out by itself.
            "attention_mask": {0: dims["batch"], 1: torch.export.Dim.DYNAMIC},
            "past": shapes,
        },
        input_names=["input_ids", "attention_mask", *layout.names("past_key_values")],
        output_names=["logits", *layout.names("present")],
    )


def make_decoder(model: torch.nn.Module) -> tuple[Decoder, DecoderInputs]:
    """The decoder of a causal language model in evaluation mode, and what to export it with."""
    layout = find_cache_layout(model)
    return Decoder(model, layout), decoder_inputs(layout)
