"""Routers: which module feeds a layer's experts, and which attributes of MoERouter compute what it does."""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from onnx_moe.errors import OnnxMoeError
from onnx_moe.export.patching import is_weightless, random_copy
from onnx_moe.reference.router import router

logger = logging.getLogger("onnx_moe")

_ROWS = 64

#: Relative differences of weights up to here are roundings of float32.
_ROUNDING = 2e-6

#: What models call the bias that is added to the scores for the choice alone.
_CORRECTION_BIASES = ("e_score_correction_bias", "correction_bias", "expert_bias", "balancing_biases")

#: What models call the factor of the weights.
_SCALING_FACTORS = ("routed_scaling_factor", "route_scale", "router_scaling_factor")


@dataclass
class RouterMatch:
    """The attributes of MoERouter that compute a router; its family in a word or two.

    tensors: names of the module's matrix [E, H], logits' bias and correction bias, None where it has none.
    correction_argument: name of forward's argument that is the correction bias, where the module holds none.
    output: which of (logits, weights, ids) each element of the module's output is; "own" for what MoERouter does not
    compute. keeps_dimensions: whether it answers [..., k] to [..., H], not [T, k].
    """

    family: str
    tensors: tuple[str, str | None, str | None]
    correction_argument: str | None
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
    weight_name = _weight_name(module)
    if weight_name is None:
        return NoMatch("it has no weight of shape [experts, hidden], or several")
    home = weight_name.rpartition("weight")[0]
    tensors = (weight_name, _tensor_name(module, f"{home}bias"), _tensor_name(module, *_CORRECTION_BIASES))
    argument = None if tensors[2] else _correction_argument(module)
    probe = _Probe(_random_copy(module), tensors, argument, output)
    try:
        probe.run()
    except Exception as error:  # an unknown module may fail in any way
        return NoMatch(f"it does not run on random rows: {error}")
    agreeing = list(_agreeing(probe))
    if not agreeing:
        return NoMatch("none of the known families agrees with it on random inputs")
    # Families that differ by roundings alone are one, the first of them; an epsilon of 1e-6 makes more than a rounding.
    exact = [found for found in agreeing if found[0] < _ROUNDING] or agreeing
    best = min((found for found in exact if found[1] == exact[0][1]), key=lambda found: found[0])
    _, family, attributes, logits = best
    kinds = tuple(
        "own" if kind == "logits" and not _are_logits(result, logits) else kind
        for kind, result in zip(output, probe.results, strict=True)
    )
    return RouterMatch(family, tensors, argument, attributes, kinds, probe.keeps_dimensions())


@dataclass
class _Probe:
    """A copy of a router with random tensors, and what it answers to random rows."""

    module: torch.nn.Module
    names: tuple[str, str | None, str | None]
    argument: str | None
    output: tuple[str, ...]
    results: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        weight, bias, correction = (get_tensor(self.module, name) for name in self.names)
        assert weight is not None
        if self.argument is not None:
            correction = torch.randn(weight.shape[0], generator=generator) * 0.1
        self.keywords = {} if self.argument is None else {self.argument: correction}
        self.tensors = (weight, bias, None if correction is None else correction.reshape(-1))
        self.hidden_states = torch.randn(_ROWS, weight.shape[1], generator=generator)

    def run(self) -> None:
        """Calls the router on rows; on a batch of rows if it takes no less."""
        with torch.no_grad():
            try:
                self.results = self.module(self.hidden_states, **self.keywords)
            except Exception:  # a router of batches
                self.results = self.module(self.hidden_states[None], **self.keywords)

    def keeps_dimensions(self) -> bool:
        try:
            with torch.no_grad():
                results = self.module(self.hidden_states.unflatten(0, (2, -1)), **self.keywords)
        except Exception:  # a router of rows: it is never called with more dimensions
            return False
        ids: torch.Tensor = results[self.output.index("ids")]
        return ids.ndim == 3


def _agreeing(probe: _Probe) -> Iterator[tuple[float, str, dict[str, Any], torch.Tensor]]:
    """(error, family, attributes, logits) of each form of MoERouter that agrees with the probe."""
    actual = dict(zip(probe.output, probe.results, strict=False))
    ids, weights = (actual[name].reshape(_ROWS, -1) for name in ("ids", "weights"))
    for family, attributes in _families(probe.module, ids.shape[-1]):
        try:
            our_ids, our_weights, logits = router(probe.hidden_states, *probe.tensors, **attributes)
        except OnnxMoeError:
            continue
        error = _disagreement(ids, weights, our_ids, our_weights)
        if error < 1e-4:
            yield error, family, attributes, logits


def get_tensor(module: torch.nn.Module, name: str | None) -> torch.Tensor | None:
    """The tensor "gate.weight" of `module`; None for None."""
    return None if name is None else operator.attrgetter(name)(module)


def _are_logits(result: Any, logits: torch.Tensor) -> bool:
    return (
        isinstance(result, torch.Tensor)
        and result.shape == logits.shape
        and torch.allclose(result.float(), logits, rtol=1e-4, atol=1e-4)
    )


def _weight_name(module: torch.nn.Module) -> str | None:
    """The name of its only matrix."""
    names = [name for name, parameter in module.named_parameters() if parameter.ndim == 2]
    names = [name for name in names if name.endswith("weight")]
    return names[0] if len(names) == 1 else None


def _tensor_name(module: torch.nn.Module, *names: str) -> str | None:
    """The first tensor of `module` with such a name, or with such a name behind a submodule's."""
    tensors = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    for name in names:
        found = [path for path in tensors if path == name or path.endswith(f".{name}")]
        if found:
            return found[0]
    return None


def _correction_argument(module: torch.nn.Module) -> str | None:
    """The argument of forward that is the correction bias: some blocks hold it, and not their router."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in _CORRECTION_BIASES if name in parameters), None)


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


def _disagreement(ids: torch.Tensor, weights: torch.Tensor, our_ids: torch.Tensor, our_weights: torch.Tensor) -> float:
    """The largest relative difference of weights; infinity where a row chooses other experts, in whatever order."""
    if ids.shape != our_ids.shape:
        return math.inf
    order, our_order = ids.argsort(-1), our_ids.argsort(-1)
    if not torch.equal(ids.gather(-1, order), our_ids.gather(-1, our_order).to(ids.dtype)):
        return math.inf
    ours = our_weights.detach().gather(-1, our_order)
    return float(((weights.detach().float().gather(-1, order) - ours).abs() / (ours.abs() + 1e-3)).max())


def _families(module: torch.nn.Module, top_k: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Known ways from logits to weights, with the module's own numbers."""
    facts: Any = module
    factors = (getattr(facts, name, None) for name in _SCALING_FACTORS)
    scaling_factors = dict.fromkeys((*(float(factor) for factor in factors if factor is not None), 1.0))
    norm_min = float(getattr(facts, "norm_min", 0.0))
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
        normalized = {"scoring": scoring, "normalize": 1}
        forms += [(f"{scoring}, normalized", {**normalized, "norm_epsilon": epsilon}) for epsilon in (1e-20, 1e-6)]
        forms.append((f"{scoring}, normalized", {**normalized, "norm_min": norm_min}))
        forms.append((scoring, {"scoring": scoring}))
    for (family, form), group, factor in itertools.product(forms, reversed(group_forms), scaling_factors):
        name = f"{family}, {groups} groups" if group else family
        yield name, {"top_k": top_k, **form, **group, **({} if factor == 1.0 else {"scaling_factor": factor})}
