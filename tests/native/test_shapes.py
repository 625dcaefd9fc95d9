"""Shapes and types that ONNX Runtime infers for the nodes' outputs, and that they are those of the results."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnx_moe
from onnx_moe.operators import EXPERT_GEMM, ROUTER

from .models import BFLOAT16, EXPERT_GEMM_INPUTS, FLOAT, FLOAT16, INT32, ROUTER_INPUTS, Shape, node_model

SIZES = {"B": 2, "S": 3, "T": 5}
TYPE_NAMES = {FLOAT: "tensor(float)", FLOAT16: "tensor(float16)", BFLOAT16: "tensor(bfloat16)"}


def check(model: onnx.ModelProto, expected: dict[str, tuple[str, Shape]], fed: bool = True) -> None:
    """Outputs have the types and shapes `expected`, declared and, with B, S and T of their sizes, at run."""
    session = onnx_moe.InferenceSession(model.SerializeToString())
    # ONNX Runtime says [] where nothing is known.
    declared = {output.name: (output.type, list(output.shape)) for output in session.get_outputs()}
    assert declared == {name: (kind, list(shape or [])) for name, (kind, shape) in expected.items()}
    if not fed:  # numpy has no bfloat16 that ONNX Runtime takes
        return
    arrays = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = [SIZES[dim.dim_param] if dim.dim_param else dim.dim_value for dim in tensor.shape.dim]
        arrays[value.name] = np.ones(sizes, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    for output, (_, shape) in zip(session.run(None, arrays), expected.values(), strict=True):
        if shape is not None:
            assert output.shape == tuple(SIZES.get(str(size), size) for size in shape)


def gemm_inputs(
    leading: tuple[int | str, ...], *, per_slot: bool = False, element_type: int = FLOAT, combine: bool = False
) -> dict[str, tuple[int, Shape]]:
    inputs: dict[str, tuple[int, Shape]] = {
        "x": (element_type, (*leading, *([2] if per_slot else []), 64)),
        "expert_ids": (INT32, (*leading, 2)),
        "weights": EXPERT_GEMM_INPUTS["weights"],
        "scales": EXPERT_GEMM_INPUTS["scales"],
    }
    return {**inputs, **({"expert_weights": (FLOAT, (*leading, 2))} if combine else {})}


@pytest.mark.parametrize("leading", [("B", "S"), ("T",), (), (4, 1, 3), ("B", 3)], ids=str)
@pytest.mark.parametrize("element_type", TYPE_NAMES)
@pytest.mark.parametrize("combine", [False, True])
@pytest.mark.parametrize("gated", [0, 1])
@pytest.mark.parametrize("per_slot", [False, True])
def test_expert_gemm(
    leading: tuple[int | str, ...], element_type: int, combine: bool, gated: int, per_slot: bool
) -> None:
    inputs = gemm_inputs(leading, per_slot=per_slot, element_type=element_type, combine=combine)
    shape = (*leading, *([] if combine else [2]), 17 if gated else 34)
    model = node_model(EXPERT_GEMM, inputs, {"gated": gated})
    check(model, {"y": (TYPE_NAMES[element_type], shape)}, fed=element_type != BFLOAT16)


def test_empty_names_at_the_end_are_inputs_left_out() -> None:
    model = node_model(EXPERT_GEMM, gemm_inputs(("B", "S")), {}, keep_empty_inputs=True)
    assert list(model.graph.node[0].input[4:]) == ["", "", ""]
    check(model, {"y": ("tensor(float)", ("B", "S", 2, 34))})


def test_empty_names_in_the_middle_are_inputs_left_out() -> None:
    model = node_model(EXPERT_GEMM, gemm_inputs(("B", "S"), combine=True), {})
    assert list(model.graph.node[0].input[4:]) == ["", "", "expert_weights"]
    check(model, {"y": ("tensor(float)", ("B", "S", 34))})


def test_an_input_of_any_rank_leaves_the_output_open() -> None:
    inputs = {**gemm_inputs(("T",)), "expert_ids": (INT32, None)}
    session = onnx_moe.InferenceSession(node_model(EXPERT_GEMM, inputs, {}).SerializeToString())
    assert (session.get_outputs()[0].type, session.get_outputs()[0].shape) == ("tensor(float)", [])


@pytest.mark.parametrize("leading", [("B", "S"), ("T",), (), (4, 1, 3)], ids=str)
@pytest.mark.parametrize("attributes", [{"top_k": 3}, {"top_k": 2, "num_shared_experts": 2}], ids=str)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_router(leading: tuple[int | str, ...], attributes: dict[str, Any], gate: bool, logits: bool) -> None:
    inputs: dict[str, tuple[int, Shape]] = {"hidden_states": (FLOAT16, (*leading, 32 if gate else 8))}
    if gate:
        inputs["gate_weight"] = ROUTER_INPUTS["gate_weight"]
    slots = sum(attributes.values())
    outputs: dict[str, tuple[str, Shape]] = {
        "expert_ids": ("tensor(int32)", (*leading, slots)),
        "expert_weights": ("tensor(float)", (*leading, slots)),
    }
    if logits:  # its shape stays open: see RouterOperator::infer_shapes
        outputs["router_logits"] = ("tensor(float)", None)
    check(node_model(ROUTER, inputs, attributes, outputs=list(outputs)), outputs)
