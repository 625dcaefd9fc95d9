"""The text model of a multimodal one as a causal language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from onnx_moe.errors import ExportError
from onnx_moe.export.kv_cache import cache_name
from onnx_moe.export.patching import is_weightless


@dataclass
class _Output(ModelOutput):
    logits: torch.Tensor | None = None
    cache: Any = None


class TextModel(torch.nn.Module):
    """A language model and the head that makes logits of its hidden states."""

    def __init__(self, language_model: torch.nn.Module, lm_head: torch.nn.Module) -> None:
        super().__init__()
        self.language_model = language_model
        self.lm_head = lm_head
        self.config: Any = language_model.config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool = True,
        cache: Any = None,
    ) -> _Output:
        name = cache_name(self.language_model)
        output = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{name: cache},
        )
        return _Output(logits=self.lm_head(output.last_hidden_state), cache=output[name])


def find_text_model(module: torch.nn.Module) -> TextModel | None:
    """The text part of a multimodal model of transformers, None if `module` is none.

    Raises ExportError where the whole model makes other logits of text than its language model and head do.
    """
    inner = getattr(module, "model", None)
    language_model = getattr(inner, "language_model", None)
    head = getattr(module, "lm_head", None)
    if not isinstance(language_model, torch.nn.Module) or not isinstance(head, torch.nn.Module):
        return None
    text_model = TextModel(language_model, head)
    if not is_weightless(module):
        _check_logits(module, text_model)
    return text_model


def _check_logits(module: Any, text_model: TextModel) -> None:
    input_ids = torch.arange(1, 4, device=next(module.parameters()).device)[None]
    with torch.no_grad():
        expected = module(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits.float()
        actual = text_model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
    if not torch.allclose(actual.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ExportError(
            f"{type(module).__name__} makes other logits of text than its language model and head alone: wrap both in "
            "a module of your own that does the rest, and pass example_inputs."
        )
