"""A whole block against ONNX Runtime's own operator, com.microsoft.QMoE, which decodes the same bytes itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from .cases import GemmCase, RouterCase
from .data import Array, GemmInputs, RouterInputs, draw_gemm_inputs, draw_router_inputs
from .implementations import IMPLEMENTATIONS, Implementation, run_poisoned, session_options

TOKENS, SLOTS, NUM_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE = 9, 3, 8, 160, 96

ROUTER = RouterCase(tokens=(TOKENS,), gate="absent", num_experts=NUM_EXPERTS, top_k=SLOTS, normalize=True)
GATE_UP = GemmCase(
    tokens=(TOKENS,),
    slots=SLOTS,
    num_experts=NUM_EXPERTS,
    rows=2 * INTERMEDIATE_SIZE,
    activation="silu",
    gated=True,
    interleaved=True,
    alpha=1.702,
    beta=1.0,
    limit=7.0,
    global_scale="expert",
)
DOWN = replace(GemmCase(), tokens=(TOKENS,), slots=SLOTS, num_experts=NUM_EXPERTS, rows=HIDDEN_SIZE)

#: Names of the format in QMoE, and of its scales' type.
FORMATS = {"mxfp4": ("fp4", TensorProto.FLOAT8E8M0), "nvfp4": ("nvfp4", TensorProto.FLOAT8E4M3FN)}


def draw_block(format: str) -> tuple[RouterInputs, GemmCase, GemmInputs, GemmCase, GemmInputs]:
    block_size = replace(DOWN, format=format).resolved_block_size
    gate_up = replace(GATE_UP, format=format, blocks=HIDDEN_SIZE // block_size)
    down = replace(
        DOWN,
        format=format,
        blocks=INTERMEDIATE_SIZE // block_size,
        x_per_slot=True,
        combine=True,
        global_scale="expert",
    )
    # QMoE's NVFP4 loses digits unless the global scales are powers of two.
    powers = np.exp2(np.arange(NUM_EXPERTS) % 3 - 1).astype(np.float32)
    gate_up_inputs = replace(draw_gemm_inputs(gate_up), global_scale=powers)
    down_inputs = replace(draw_gemm_inputs(down), global_scale=powers[::-1].copy())
    return draw_router_inputs(ROUTER), gate_up, gate_up_inputs, down, down_inputs


def qmoe(format: str, logits: Array, gate_up: GemmInputs, down: GemmInputs) -> Array:
    quant_type, scale_type = FORMATS[format]
    assert gate_up.global_scale is not None
    assert down.global_scale is not None
    initializers = [
        helper.make_tensor(name, element_type, array.shape, array.tobytes(), raw=True)
        for name, element_type, array in (
            ("fc1_weights", TensorProto.UINT8, gate_up.weights),
            ("fc1_scales", scale_type, gate_up.scales),
            ("fc2_weights", TensorProto.UINT8, down.weights),
            ("fc2_scales", scale_type, down.scales),
            ("fc1_global", TensorProto.FLOAT, gate_up.global_scale),
            ("fc2_global", TensorProto.FLOAT, down.global_scale),
        )
    ]
    inputs = ["x", "logits", "fc1_weights", "fc1_scales", "", "fc2_weights", "fc2_scales", *[""] * 8]
    node = helper.make_node(
        "QMoE",
        [*inputs, "fc1_global", "fc2_global"],
        ["y"],
        domain="com.microsoft",
        k=SLOTS,
        normalize_routing_weights=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=GATE_UP.alpha,
        activation_beta=GATE_UP.beta,
        swiglu_limit=GATE_UP.limit,
        expert_weight_bits=4,
        block_size=HIDDEN_SIZE // gate_up.scales.shape[-1],
        quant_type=quant_type,
        weights_prepacked=1,
    )
    sizes = {"x": HIDDEN_SIZE, "logits": NUM_EXPERTS, "y": HIDDEN_SIZE}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["t", sizes[name]]) for name in sizes}
    graph = helper.make_graph([node], "qmoe", [values["x"], values["logits"]], [values["y"]], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    outputs = {"y": np.empty((TOKENS, HIDDEN_SIZE), np.float32)}
    return run_poisoned(model, session_options(), {"x": gate_up.x, "logits": logits}, outputs)["y"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
@pytest.mark.parametrize("format", FORMATS)
def test_block_equals_qmoe(format: str, implementation: Implementation) -> None:
    router_inputs, gate_up, gate_up_inputs, down, down_inputs = draw_block(format)
    expected = qmoe(format, router_inputs.hidden_states, gate_up_inputs, down_inputs)

    routed = implementation.router(ROUTER, router_inputs)
    gate_up_inputs = replace(gate_up_inputs, expert_ids=routed["expert_ids"])
    intermediate = implementation.gemm(gate_up, gate_up_inputs)["y"]
    down_inputs = replace(
        down_inputs,
        x=intermediate,
        expert_ids=routed["expert_ids"],
        expert_weights=routed["expert_weights"],
    )
    y = implementation.gemm(down, down_inputs)["y"]
    # Both are float32-accurate: two matrix products, each within the contract's 1e-6, on both sides.
    assert np.linalg.norm(y - expected) <= 4e-6 * np.linalg.norm(expected)
