"""Models of one node whose inputs have the types and shapes that a test declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from onnx_moe.operators import DOMAIN, EXPERT_GEMM, ROUTER, VERSION, get_operator

NODE_NAME = "node_under_test"

#: Dimensions: sizes, or names of free ones; None: of any rank.
Shape = Sequence[int | str] | None

FLOAT, FLOAT16, BFLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
UINT8, INT32, INT64 = TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64

#: A legal use of each operator, with every input: element type and shape by name.
ROUTER_INPUTS: dict[str, tuple[int, Shape]] = {
    "hidden_states": (FLOAT, (5, 32)),
    "gate_weight": (FLOAT, (8, 32)),
    "gate_bias": (FLOAT, (8,)),
    "correction_bias": (FLOAT, (8,)),
}
EXPERT_GEMM_INPUTS: dict[str, tuple[int, Shape]] = {
    "x": (FLOAT, (5, 64)),
    "expert_ids": (INT32, (5, 2)),
    "weights": (UINT8, (8, 34, 32)),
    "scales": (UINT8, (8, 34, 2)),
    "global_scale": (FLOAT, (8,)),
    "bias": (FLOAT, (8, 34)),
    "expert_weights": (FLOAT, (5, 2)),
}
LEGAL_INPUTS = {ROUTER: ROUTER_INPUTS, EXPERT_GEMM: EXPERT_GEMM_INPUTS}


def node_model(
    operator: str,
    inputs: Mapping[str, tuple[int, Shape]],
    attributes: Mapping[str, Any],
    *,
    outputs: Sequence[str] | None = None,
    keep_empty_inputs: bool = False,
) -> onnx.ModelProto:
    """A model of one node; inputs that are not in `inputs` are left out.

    outputs: names of the node's first outputs, by default those that are not optional; their shapes are for
    ONNX Runtime to infer. keep_empty_inputs: names that are left out stay as "" at the end of the node's inputs too.
    """
    definition = get_operator(operator)
    names = [value.name if value.name in inputs else "" for value in definition.inputs]
    while not keep_empty_inputs and not names[-1]:
        names.pop()
    if outputs is None:
        outputs = [value.name for value in definition.outputs if not value.optional]
    first_type = inputs[definition.inputs[0].name][0]
    types = {"expert_ids": INT32, "expert_weights": FLOAT, "router_logits": FLOAT, "y": first_type}
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, name=NODE_NAME, domain=DOMAIN, **attributes)],
        "one_node",
        [helper.make_tensor_value_info(name, *inputs[name]) for name in names if name],
        [helper.make_tensor_value_info(name, types[name], None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
