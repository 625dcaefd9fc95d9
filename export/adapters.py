"""Adapters: what turns a module of experts into an ExpertLayer. `register_adapter` adds one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from onnx_moe.errors import ExportError
from onnx_moe.export.layers import ExpertLayer, Projection
from onnx_moe.export.model_adapters import MODEL_ADAPTERS
from onnx_moe.operators import expert_gemm_attributes
from onnx_moe.reference.expert_gemm import activate

logger = logging.getLogger("onnx_moe")

Adapter = Callable[[torch.nn.Module], ExpertLayer]

_adapters: dict[type[torch.nn.Module], Adapter] = {}

_FUNCTIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "none")


def register_adapter(module_class: type[torch.nn.Module], adapter: Adapter) -> None:
    """Makes `export` treat modules of `module_class` (and its subclasses) as experts: `adapter(module)` describes one.

    A class that is registered twice keeps the last adapter. Experts modules of transformers ≥ 5 and
    `onnx_moe.nn.SparseMoE` need none.
    """
    _adapters[module_class] = adapter


def find_adapter(module: torch.nn.Module) -> Adapter | None:
    """The adapter for `module`, or None if it is no module of experts."""
    for module_class in type(module).__mro__:
        if module_class in _adapters:
            return _adapters[module_class]
        name = f"{module_class.__module__}.{module_class.__qualname__}"
        if name in MODEL_ADAPTERS:
            return MODEL_ADAPTERS[name]
    return adapt_stacked_experts if _has_stacked_experts(module) else None


def _has_stacked_experts(module: torch.nn.Module) -> bool:
    """Whether `module` follows transformers' convention for stacked experts (its decorator sets these)."""
    return all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "is_concatenated"))


def adapt_stacked_experts(module: torch.nn.Module) -> ExpertLayer:
    """Experts as transformers stacks them: (gate_)up_proj and down_proj, [E, N, K] or transposed."""
    facts: Any = module
    if getattr(facts, "has_post_expert_norm", False):
        raise ExportError(
            f"{type(module).__name__} normalises each expert's output, which MoEExpertGemmFP4 cannot: register an "
            "adapter whose forward applies the norm, or leave this layer out."
        )
    name = "gate_up_proj" if facts.has_gate else "up_proj"
    up = Projection(getattr(facts, name), facts.is_transposed, getattr(facts, f"{name}_bias", None))
    down = Projection(facts.down_proj, facts.is_transposed, getattr(facts, "down_proj_bias", None))
    if up.matrix.shape[0] != down.matrix.shape[0] or up.matrix.shape[2] != down.matrix.shape[1]:
        raise ExportError(
            f"{type(module).__name__}: {name} {list(up.matrix.shape)} and down_proj {list(down.matrix.shape)} do not "
            "fit as [E, N, K]: register an adapter for this class."
        )
    activation = recognise_activation(module, up.matrix.shape[1])
    if activation is not None:
        return ExpertLayer(up, down, activation)
    logger.info("%s: its activation is none of the operator's; exported as ordinary ops.", type(module).__name__)
    return ExpertLayer(up, down, gate=facts._apply_gate if facts.has_gate else facts.act_fn)


def recognise_activation(module: torch.nn.Module, rows: int) -> dict[str, Any] | None:
    """The operator's attributes that compute what `module` does between its projections, found by trying them on
    random products; None if there are none.
    """
    facts: Any = module
    apply = facts._apply_gate if facts.has_gate else facts.act_fn
    # From the curved part to far beyond any clamp: one that is not reached would go unnoticed.
    scales = torch.tensor([1.0, 4.0, 30.0, 1000.0]).repeat(4)[:, None]
    products = torch.randn(16, rows, generator=torch.Generator().manual_seed(0)) * scales
    with torch.no_grad():
        expected = apply(products)
    for attributes in _activation_candidates(module):
        actual = activate(products, expert_gemm_attributes(attributes))
        if actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-5, atol=1e-6):
            return attributes
    return None


def _activation_candidates(module: torch.nn.Module) -> Iterator[dict[str, Any]]:
    facts: Any = module
    if not facts.has_gate:
        yield from ({"activation": function} for function in _FUNCTIONS)
        return
    layout = "concatenated" if facts.is_concatenated else "interleaved"
    config = getattr(module, "config", None)
    limits = {float(value) for name in ("limit", "swiglu_limit") if (value := _number(module, config, name))}
    alphas = {float(value) for name in ("alpha", "swiglu_alpha") if (value := _number(module, config, name))}
    for gate_layout in dict.fromkeys((layout, "concatenated", "interleaved")):
        for limit in (0.0, *limits):
            for function in _FUNCTIONS:
                yield {"activation": function, "gated": 1, "gate_layout": gate_layout, "limit": limit}
            for alpha in (1.0, *alphas):
                yield {
                    "activation": "silu",
                    "gated": 1,
                    "gate_layout": gate_layout,
                    "limit": limit,
                    "alpha": alpha,
                    "beta": 1.0,
                }


def _number(module: torch.nn.Module, config: object, name: str) -> float | None:
    value = getattr(module, name, None)
    value = getattr(config, name, None) if value is None else value
    return value if isinstance(value, int | float) else None
