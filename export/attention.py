"""Attention in the form that ONNX Runtime runs best, for the length of a trace. What that gains: docs/decoders.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from onnx_moe.export.patching import home_modules, replace_attribute

#: What modules of transformers call their table of attention functions.
_TABLE = "ALL_ATTENTION_FUNCTIONS"


@contextmanager
def efficient_attention(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, `model` multiplies grouped keys and values, and latent ones, without copies for each head."""
    from transformers.integrations import sdpa_attention

    with ExitStack() as stack:
        stack.enter_context(replace_attribute(sdpa_attention, "use_gqa_in_sdpa", lambda *_arguments: True))
        latent = [child for child in model.modules() if _is_latent(child)]
        for child in latent:
            stack.enter_context(replace_attribute(child, "expand_kv", _keep_latent))
        for module in home_modules(model) if latent else ():
            if hasattr(module, _TABLE):
                stack.enter_context(replace_attribute(module, _TABLE, _Interfaces(getattr(module, _TABLE))))
        yield


def _is_latent(module: Any) -> bool:
    """Whether it is multi-head latent attention (DeepSeek-V2, 2024) as transformers writes it."""
    return hasattr(module, "expand_kv") and getattr(getattr(module, "kv_b_proj", None), "bias", 0) is None


def _keep_latent(latent: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For `expand_kv`: the latent [B, 1, T, R] and the rotated key [B, 1, T, D] as one key, and the latent as value."""
    return torch.cat([latent, rotated], dim=-1), latent


class _Interfaces:
    """A table of attention functions whose functions take the keys and values of `_keep_latent`, too."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return partial(_attend, self._table.get_interface(name, default))


def _attend(
    function: Callable[..., Any],
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *arguments: Any,
    **keywords: Any,
) -> tuple[torch.Tensor, Any]:
    """`function`; for latent attention with the matrices that would expand keys and values multiplied into the query
    and the output instead: a step then costs a product with each token's latent, not that and its expansion.
    """
    if not _is_latent(module):
        return function(module, query, key, value, *arguments, **keywords)  # type: ignore[no-any-return]
    heads, plain = query.shape[1], module.qk_nope_head_dim
    expansion = module.kv_b_proj.weight.unflatten(0, (heads, -1))
    query = torch.cat([query[..., :plain] @ expansion[:, :plain], query[..., plain:]], dim=-1)
    with replace_attribute(module, "num_key_value_groups", heads):
        output, weights = function(module, query, key, value, *arguments, **keywords)
    return (output.transpose(1, 2) @ expansion[:, plain:].transpose(1, 2)).transpose(1, 2), weights
