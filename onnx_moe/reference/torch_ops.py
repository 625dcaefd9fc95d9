"""torch.ops.onnx_moe.router and torch.ops.onnx_moe.expert_gemm_fp4: the reference as torch.library operators.

Their signatures follow from the definition of the operators: inputs in order, attributes keyword-only with
its defaults.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from onnx_moe.operators import (
    DOMAIN,
    EXPERT_GEMM,
    ROUTER,
    AttributeDefinition,
    expert_gemm_attributes,
    get_operator,
    router_attributes,
)
from onnx_moe.reference.expert_gemm import check_expert_gemm_inputs, expert_gemm, output_rows
from onnx_moe.reference.router import check_router_inputs, router

_TORCH_TYPES = {"int": "int", "float": "float", "string": "str"}


def torch_schema(operator: str) -> str:
    """The torch.library schema of an operator: "(Tensor x, ..., *, int top_k, ...) -> ..."."""
    definition = get_operator(operator)
    inputs = [f"Tensor{'?' if value.optional else ''} {value.name}" for value in definition.inputs]
    # Torch wants arguments without a default first.
    attributes = sorted(definition.attributes, key=lambda attribute: not attribute.required)
    arguments = [*inputs, "*", *(_attribute_argument(attribute) for attribute in attributes)]
    outputs = ", ".join("Tensor" for _ in definition.outputs)
    return f"({', '.join(arguments)}) -> {outputs if len(definition.outputs) == 1 else f'({outputs})'}"


def _attribute_argument(attribute: AttributeDefinition) -> str:
    default = "" if attribute.required else f"={json.dumps(attribute.default)}"
    return f"{_TORCH_TYPES[attribute.type]} {attribute.name}{default}"


@torch.library.custom_op(f"{DOMAIN}::router", mutates_args=(), schema=torch_schema(ROUTER))
def router_op(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor | None,
    gate_bias: torch.Tensor | None,
    correction_bias: torch.Tensor | None,
    next_gate_weight: torch.Tensor | None,
    **attributes: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return router(hidden_states, gate_weight, gate_bias, correction_bias, next_gate_weight, **attributes)


@router_op.register_fake
def _(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor | None,
    gate_bias: torch.Tensor | None,
    correction_bias: torch.Tensor | None,
    next_gate_weight: torch.Tensor | None,
    **attributes: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    options = router_attributes(attributes)
    num_experts = check_router_inputs(hidden_states, gate_weight, gate_bias, correction_bias, next_gate_weight, options)
    rows = hidden_states.shape[:-1]
    slots = options.top_k + options.num_shared_experts
    return (
        hidden_states.new_empty((*rows, slots), dtype=torch.int32),
        hidden_states.new_empty((*rows, slots), dtype=torch.float32),
        hidden_states.new_empty((*rows, num_experts), dtype=torch.float32),
    )


@torch.library.custom_op(f"{DOMAIN}::expert_gemm_fp4", mutates_args=(), schema=torch_schema(EXPERT_GEMM))
def expert_gemm_op(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    expert_weights: torch.Tensor | None,
    **attributes: Any,
) -> torch.Tensor:
    return expert_gemm(x, expert_ids, weights, scales, global_scale, bias, expert_weights, **attributes)


@expert_gemm_op.register_fake
def _(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    expert_weights: torch.Tensor | None,
    **attributes: Any,
) -> torch.Tensor:
    options = expert_gemm_attributes(attributes)
    check_expert_gemm_inputs(x, expert_ids, weights, scales, global_scale, bias, options)
    leading = expert_ids.shape if expert_weights is None else expert_ids.shape[:-1]
    return x.new_empty((*leading, output_rows(weights, options)))
