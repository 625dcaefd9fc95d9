"""torch.ops.onnx_moe.* to nodes of the domain onnx_moe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import values

from onnx_moe.operators import DOMAIN, EXPERT_GEMM, ROUTER, VERSION, get_operator, register_schemas


def _changed(operator: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes that differ from their defaults: a node carries what says something."""
    definitions = {attribute.name: attribute for attribute in get_operator(operator).attributes}
    return {
        name: value
        for name, value in attributes.items()
        if definitions[name].required or value != definitions[name].default
    }


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch.onnx.export takes as custom_translation_table."""
    register_schemas()  # the opset looks its operators up there
    opset = values.Opset(DOMAIN, VERSION)

    def router(
        hidden_states: Any,
        gate_weight: Any = None,
        gate_bias: Any = None,
        correction_bias: Any = None,
        top_k: int = 1,
        scoring: str = "softmax",
        normalize: int = 0,
        norm_epsilon: float = 0.0,
        norm_min: float = 0.0,
        scaling_factor: float = 1.0,
        num_groups: int = 1,
        top_k_groups: int = 1,
        group_scoring: str = "max",
        num_shared_experts: int = 0,
    ) -> Any:
        attributes = {
            "top_k": top_k,
            "scoring": scoring,
            "normalize": normalize,
            "norm_epsilon": norm_epsilon,
            "norm_min": norm_min,
            "scaling_factor": scaling_factor,
            "num_groups": num_groups,
            "top_k_groups": top_k_groups,
            "group_scoring": group_scoring,
            "num_shared_experts": num_shared_experts,
        }
        inputs = (hidden_states, gate_weight, gate_bias, correction_bias)
        return opset[ROUTER](*inputs, **_changed(ROUTER, attributes))

    def expert_gemm(
        x: Any,
        expert_ids: Any,
        weights: Any,
        scales: Any,
        global_scale: Any = None,
        bias: Any = None,
        expert_weights: Any = None,
        format: str = "mxfp4",
        block_size: int = 0,
        activation: str = "none",
        gated: int = 0,
        gate_layout: str = "concatenated",
        alpha: float = 1.0,
        beta: float = 0.0,
        limit: float = 0.0,
        accuracy_level: int = 0,
    ) -> Any:
        attributes = {
            "format": format,
            "block_size": block_size,
            "activation": activation,
            "gated": gated,
            "gate_layout": gate_layout,
            "alpha": alpha,
            "beta": beta,
            "limit": limit,
            "accuracy_level": accuracy_level,
        }
        inputs = (x, expert_ids, weights, scales, global_scale, bias, expert_weights)
        return opset[EXPERT_GEMM](*inputs, **_changed(EXPERT_GEMM, attributes))

    return {
        torch.ops.onnx_moe.router.default: router,
        torch.ops.onnx_moe.expert_gemm_fp4.default: expert_gemm,
    }
