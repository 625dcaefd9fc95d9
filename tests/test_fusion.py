"""Fused blocks: the same bytes as the three nodes, wherever three nodes may become one, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conformance.implementations import run_poisoned
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnx_moe
from onnx_moe import OnnxMoeError, _native, fuse
from onnx_moe.functions import add_functions
from onnx_moe.operators import DOMAIN, VERSION
from onnx_moe.reference_evaluator import OPERATORS

HIDDEN, OUTPUT, ROUTED, SHARED = 96, 50, 6, 1
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROUTER = {"top_k": 3, "scoring": "sigmoid", "normalize": 1, "scaling_factor": 1.5, "num_shared_experts": SHARED}
GATE_UP = {"activation": "silu", "gated": 1, "limit": 3.0}


def block_model(
    dtype: str = "float32",
    extras: bool = True,
    gate_up: dict[str, Any] | None = None,
    down: dict[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    size: int = OUTPUT,
) -> onnx.ModelProto:
    """Router, gate and up projection, down projection to `size` columns; `extras` adds every optional input."""
    rng = np.random.default_rng(3)
    experts, rows, element = ROUTED + SHARED, 2 * 64, DTYPES[dtype]
    arrays: dict[str, Any] = {
        "gate": rng.standard_normal((ROUTED, HIDDEN)).astype(element),
        "w1": rng.integers(0, 256, (experts, rows, HIDDEN // 2), np.uint8),
        "s1": rng.integers(118, 124, (experts, rows, HIDDEN // 32), np.uint8),
        "w2": rng.integers(0, 256, (experts, size, 32), np.uint8),
        "s2": rng.integers(118, 124, (experts, size, 2), np.uint8),
    }
    if extras:
        arrays |= {
            "gate_bias": rng.standard_normal(ROUTED).astype(np.float32),
            "correction": rng.standard_normal(ROUTED).astype(np.float32),
            "g1": rng.uniform(0.5, 2, (experts, 2)).astype(np.float32),
            "b1": rng.standard_normal((experts, rows)).astype(element),
            "g2": rng.uniform(0.5, 2, experts).astype(np.float32),
            "b2": rng.standard_normal((experts, size)).astype(np.float32),
        }

    def given(*names: str) -> list[str]:
        return [name if name in arrays or name in ("x", "ids", "h", "weights") else "" for name in names]

    def node(operator: str, inputs: list[str], results: list[str], attributes: dict[str, Any]) -> onnx.NodeProto:
        return helper.make_node(operator, inputs, results, name=results[0], domain=DOMAIN, **attributes)

    nodes = [
        node("MoERouter", given("x", "gate", "gate_bias", "correction"), ["ids", "weights"], ROUTER),
        node("MoEExpertGemmFP4", given("x", "ids", "w1", "s1", "g1", "b1"), ["h"], GATE_UP | (gate_up or {})),
        node("MoEExpertGemmFP4", given("h", "ids", "w2", "s2", "g2", "b2", "weights"), ["y"], down or {}),
    ]
    types: dict[str, tuple[Any, list[Any]]] = {
        "x": (element, ["t", HIDDEN]),
        "y": (element, ["t", size]),
        "ids": (np.int32, ["t", 4]),
        "h": (element, ["t", 4, 64]),
    }

    def info(name: str) -> onnx.ValueInfoProto:
        kind, shape = types[name]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)

    graph = helper.make_graph(
        nodes,
        "block",
        [info("x")],
        [info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    assert fuse(graph) == 1
    proto = ir.to_proto(graph)
    assert [node.op_type for node in proto.graph.node] == ["MoEBlockFP4"]
    onnx.checker.check_model(proto)
    return proto


def run(model: onnx.ModelProto, x: Any, kernel: str = "auto", threads: int = 2, plugin: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if plugin:
        onnx_moe.register(options)
    size = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    y = np.empty((len(x), size), x.dtype)
    with _native.use_kernel(kernel):
        return run_poisoned(model, options, {"x": x}, {"y": y})["y"]


@pytest.mark.parametrize("kernel", _native.kernel_names())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0, 2, 4])
@pytest.mark.parametrize(("extras", "layout"), [(False, "rows"), (True, "rows"), (True, "interleaved")])
def test_same_bytes_as_three_nodes(kernel: str, dtype: str, level: int, extras: bool, layout: str) -> None:
    attributes = {"accuracy_level": level, "weight_layout": layout}
    size = OUTPUT if layout == "rows" else 48
    three = block_model(dtype, extras, gate_up=attributes, down=attributes, size=size)
    one = fused(three)
    for tokens in (0, 1, 3, 40):
        x = np.random.default_rng(tokens).standard_normal((tokens, HIDDEN)).astype(DTYPES[dtype])
        expected = run(three, x, kernel)
        assert run(one, x, kernel).tobytes() == expected.tobytes()
        assert run(one, x, kernel, threads=1).tobytes() == expected.tobytes()


def test_reference_evaluator_and_portable_body() -> None:
    three = block_model()
    one = fused(three)
    x = np.random.default_rng(0).standard_normal((5, HIDDEN)).astype(np.float32)
    expected = ReferenceEvaluator(three, new_ops=OPERATORS).run(None, {"x": x})[0]
    np.testing.assert_array_equal(ReferenceEvaluator(one, new_ops=OPERATORS).run(None, {"x": x})[0], expected)
    with_functions = ir.from_proto(one)
    add_functions(with_functions)
    actual = run(ir.to_proto(with_functions), x, plugin=False)
    assert np.linalg.norm(actual - expected) <= 1e-6 * np.linalg.norm(expected)


def test_shape_inference() -> None:
    options = onnxruntime.SessionOptions()
    onnx_moe.register(options)
    model = fused(block_model())
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["t", OUTPUT]


@pytest.mark.parametrize(
    "model",
    [
        block_model(outputs=("y", "ids")),
        block_model(outputs=("y", "h")),
        block_model(gate_up={"accuracy_level": 4}),
        block_model(down={"weight_layout": "interleaved"}),
        block_model(down={"activation": "relu"}),
    ],
    ids=["ids are used", "intermediate is used", "levels differ", "layouts differ", "down has an activation"],
)
def test_left_as_it_is(model: onnx.ModelProto) -> None:
    graph = ir.from_proto(model)
    assert fuse(graph) == 0
    assert [node.op_type for node in graph.graph] == ["MoERouter", "MoEExpertGemmFP4", "MoEExpertGemmFP4"]


def test_a_model_without_our_nodes_is_an_error() -> None:
    empty = helper.make_graph([], "empty", [], [])
    with pytest.raises(OnnxMoeError, match="no node of the domain onnx_moe"):
        fuse(ir.from_proto(helper.make_model(empty, ir_version=10)))


def test_block_errors_name_node_value_and_remedy() -> None:
    model = fused(block_model())
    down = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    down.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(down)[:-1], "w2"))
    says = r"MoEBlockFP4 node 'y'.*input down_scales has shape \[7, 50, 2\].*\[6, 50, 2\]"
    with pytest.raises(Exception, match=says):
        run(model, np.zeros((1, HIDDEN), np.float32))
