"""Parts of transformers' models that torch.export would tie to the example's sizes, or ONNX has no operators for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from onnx_moe.export.attention import efficient_attention
from onnx_moe.export.compressed_attention import exportable_compression
from onnx_moe.export.patching import home_modules, replace_attribute
from onnx_moe.export.recurrences import exportable_recurrences

#: Modules that rotate by complex numbers, and the axis of heads of their queries.
_COMPLEX_ROTATIONS = {
    "transformers.models.deepseek_v2.modeling_deepseek_v2": 1,
    "transformers.models.llama4.modeling_llama4": 2,
}


@contextmanager
def traceable(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, `model` can be traced for sequences of any length."""
    with ExitStack() as stack:
        stack.enter_context(efficient_attention(model))
        stack.enter_context(exportable_recurrences(model))
        stack.enter_context(exportable_compression(model))
        for module in home_modules(model):
            # An indexer takes min(index_topk, tokens so far): Python's min would decide it for the example.
            if module.__name__.startswith("transformers.models."):
                stack.enter_context(replace_attribute(module, "min", _minimum))
            if module.__name__ in _COMPLEX_ROTATIONS:
                rotate = _rotate_along(_COMPLEX_ROTATIONS[module.__name__])
                stack.enter_context(replace_attribute(module, "apply_rotary_emb", rotate))
                stack.enter_context(replace_attribute(torch, "polar", _polar))
        stack.enter_context(uncounted_experts(model))
        yield


@contextmanager
def uncounted_experts(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, experts of attention run without counting their tokens, which takes values."""
    with ExitStack() as stack:
        for child in model.modules():
            if type(child).__name__ == "JetMoeMoA":
                spread, combine = _attention_experts(child)
                stack.enter_context(replace_attribute(child, "map", spread))
                stack.enter_context(replace_attribute(child, "reduce", combine))
        yield


def _minimum(*values: Any) -> Any:
    symbolic = len(values) == 2 and any(isinstance(value, torch.SymInt) for value in values)
    return torch.sym_min(*values) if symbolic else min(*values)


def _polar(absolute: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs [..., 2]."""
    return torch.stack([absolute * angle.cos(), absolute * angle.sin()], dim=-1)


def _rotate_along(heads: int) -> Callable[..., tuple[torch.Tensor, ...]]:
    """For `apply_rotary_emb`, with frequencies as pairs [B, S, D / 2, 2]."""

    def rotate(xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cosine, sine = freqs_cis.unsqueeze(heads).unbind(-1)
        rotated = []
        for x in (xq, xk):
            real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
            pairs = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
            rotated.append(pairs.flatten(-2).type_as(x))
        return tuple(rotated)

    return rotate


def _attention_experts(experts: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """For JetMoE's mixture of attention: `map`, from [B, S, H] to queries of each slot [B, S, k, N], and `reduce`, the
    way back. Its own count the tokens of each expert, which depends on the data.
    """

    def product(weight: torch.Tensor, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (weight[ids] @ x.unsqueeze(-1)).squeeze(-1)

    def spread(layer_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        logits = experts.router.layer(layer_input).float()
        chosen, ids = logits.topk(experts.top_k, dim=-1)
        gates = chosen.softmax(dim=-1).type_as(layer_input)
        queries = product(experts.input_linear.weight, ids, layer_input.unsqueeze(-2))
        return queries, logits.flatten(0, 1), (ids, gates)

    def combine(layer_input: torch.Tensor, topology: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        ids, gates = topology
        outputs = product(experts.output_linear.weight, ids, layer_input)
        output: torch.Tensor = (outputs * gates.unsqueeze(-1)).sum(dim=-2) + experts.bias
        return output

    return spread, combine
