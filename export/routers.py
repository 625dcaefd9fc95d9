"""Routers: which module feeds a layer's experts, and which attributes of MoERouter compute what it does."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from onnx_moe.errors import OnnxMoeError
from onnx_moe.export.patching import is_weightless, random_copy
from onnx_moe.reference.router import router

logger = logging.getLogger("onnx_moe")

_ROWS = 64

#: What models call the bias that is added to the scores for the choice alone.
_CORRECTION_BIASES = ("e_score_correction_bias", "correction_bias", "expert_bias")


@dataclass
class RouterMatch:
    """The attributes of MoERouter that compute a router; its family in a word or two.

    tensors: names of the module's matrix [E, H], logits' bias and correction bias, None where it has none.
    output: which of (logits, weights, ids) each element of the module's output is; "own" for what MoERouter does not
    compute. keeps_dimensions: whether it answers [..., k] to [..., H], not [T, k].
    """

    family: str
    tensors: tuple[str, str | None, str | None]
    attributes: dict[str, Any]
    output: tuple[str, ...]
    keeps_dimensions: bool


@dataclass(frozen=True)
class NoMatch:
    """Why a router is exported as ordinary operators."""

    reason: str


def match_router(module: torch.nn.Module, output: tuple[str, ...]) -> RouterMatch | NoMatch:
    """Finds the attributes of MoERouter under which it agrees with `module` on random inputs, in float32.

    The tensors of a copy are filled with random values first, so that a bias that is zero so far has an effect.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return NoMatch("it has no weight of shape [experts, hidden]")
    tensors = ("weight", _tensor_name(module, "bias"), _tensor_name(module, *_CORRECTION_BIASES))
    probe = _random_copy(module)
    hidden_states = torch.randn(_ROWS, weight.shape[1], generator=torch.Generator().manual_seed(1))
    try:
        with torch.no_grad():
            results = probe(hidden_states)
    except Exception as error:  # an unknown module may fail in any way
        return NoMatch(f"it does not run on random rows: {error}")
    actual = dict(zip(output, results, strict=False))
    probe_tensors = [getattr(probe, name) if name else None for name in tensors]
    for family, attributes in _families(module, actual["ids"].shape[-1]):
        try:
            ids, weights, logits = router(hidden_states, *probe_tensors, **attributes)
        except OnnxMoeError:
            continue
        if _agree(actual["ids"], actual["weights"], ids, weights):
            kinds = tuple(
                "own" if kind == "logits" and not _are_logits(result, logits) else kind
                for kind, result in zip(output, results, strict=True)
            )
            return RouterMatch(family, tensors, attributes, kinds, _keeps_dimensions(probe, hidden_states, output))
    return NoMatch("none of the known families agrees with it on random inputs")


def _are_logits(result: Any, logits: torch.Tensor) -> bool:
    return (
        isinstance(result, torch.Tensor)
        and result.shape == logits.shape
        and torch.allclose(result.float(), logits, rtol=1e-4, atol=1e-4)
    )


def _keeps_dimensions(probe: torch.nn.Module, hidden_states: torch.Tensor, output: tuple[str, ...]) -> bool:
    try:
        with torch.no_grad():
            results = probe(hidden_states.unflatten(0, (2, -1)))
    except Exception:  # a router of rows: it is never called with more dimensions
        return False
    ids: torch.Tensor = results[output.index("ids")]
    return ids.ndim == 3


def _tensor_name(module: torch.nn.Module, *names: str) -> str | None:
    """The first of `names` under which `module` has a tensor."""
    return next((name for name in names if isinstance(getattr(module, name, None), torch.Tensor)), None)


def _random_copy(module: torch.nn.Module) -> torch.nn.Module:
    probe = random_copy(module) if is_weightless(module) else copy.deepcopy(module)
    probe = probe.float().eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in itertools.chain(probe.parameters(), probe.buffers()):
        if tensor.is_floating_point():
            scale = 0.1 if tensor.ndim == 1 else 2.0 / tensor.shape[-1] ** 0.5
            with torch.no_grad():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return probe


def _agree(ids: torch.Tensor, weights: torch.Tensor, our_ids: torch.Tensor, our_weights: torch.Tensor) -> bool:
    """Whether each row chooses the same experts with the same weights, in whatever order."""
    if ids.shape != our_ids.shape:
        return False
    order, our_order = ids.argsort(-1), our_ids.argsort(-1)
    if not torch.equal(ids.gather(-1, order), our_ids.gather(-1, our_order).to(ids.dtype)):
        return False
    return torch.allclose(weights.float().gather(-1, order), our_weights.gather(-1, our_order), rtol=1e-4, atol=1e-6)


def _families(module: torch.nn.Module, top_k: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Known ways from logits to weights, with the module's own numbers."""
    facts: Any = module
    scaling_factors = dict.fromkeys((float(getattr(facts, "routed_scaling_factor", 1.0)), 1.0))
    groups = int(getattr(facts, "num_group", None) or getattr(facts, "n_group", None) or 1)
    top_k_groups = int(getattr(facts, "topk_group", None) or 1)
    group_forms: list[dict[str, Any]] = [{}]
    if groups > 1:
        numbers = {"num_groups": groups, "top_k_groups": top_k_groups}
        group_forms.extend({**numbers, "group_scoring": scoring} for scoring in ("top2_sum", "max"))
    forms: list[tuple[str, dict[str, Any]]] = [
        ("softmax after top-k", {"scoring": "softmax_after_topk"}),
        ("sigmoid after top-k", {"scoring": "sigmoid_after_topk"}),
    ]
    for scoring in ("softmax", "sigmoid", "sqrt_softplus"):
        forms.append((f"{scoring}, normalized", {"scoring": scoring, "normalize": 1, "norm_epsilon": 1e-20}))
        forms.append((scoring, {"scoring": scoring}))
    for (family, form), group, factor in itertools.product(forms, reversed(group_forms), scaling_factors):
        name = f"{family}, {groups} groups" if group else family
        yield name, {"top_k": top_k, **form, **group, **({} if factor == 1.0 else {"scaling_factor": factor})}
