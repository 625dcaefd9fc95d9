"""Portable bodies: which nodes get which, when they are used, and what they cost. Their values: tests/conformance."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_moe
from onnx_moe.errors import InvalidAttributeError, InvalidModelError
from onnx_moe.functions import MINIMUM_OPSET, add_functions, strip_functions
from onnx_moe.operators import DOMAIN, EXPERT_GEMM, ROUTER, VERSION

NUM_EXPERTS, ROWS, COLUMNS, TOKENS, SLOTS = 5, 6, 64, 4, 2


def block_model(
    down_attributes: Mapping[str, Any] | None = None, opset: int = 21, nodes: Sequence[onnx.NodeProto] | None = None
) -> onnx.ModelProto:
    """hidden [t, K] -> router -> two equal expert products, the second of which combines -> y [t, N]."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (NUM_EXPERTS, ROWS, COLUMNS // 2), np.uint8)
    scales = rng.integers(120, 126, (NUM_EXPERTS, ROWS, COLUMNS // 32), np.uint8)
    gate = rng.standard_normal((NUM_EXPERTS, COLUMNS)).astype(np.float32)
    products = ["hidden", "ids", "codes", "scales"]
    graph = helper.make_graph(
        nodes
        or [
            helper.make_node(ROUTER, ["hidden", "gate"], ["ids", "weights"], domain=DOMAIN, top_k=SLOTS),
            helper.make_node(EXPERT_GEMM, products, ["z"], domain=DOMAIN, name="first"),
            helper.make_node(
                EXPERT_GEMM,
                [*products, "", "", "weights"],
                ["y"],
                domain=DOMAIN,
                name="second",
                **(down_attributes or {}),
            ),
        ],
        "block",
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["t", COLUMNS])],
        [
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["t", SLOTS, ROWS]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", ROWS]),
        ],
        [
            numpy_helper.from_array(array, name)
            for name, array in (("codes", codes), ("scales", scales), ("gate", gate))
        ],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def with_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    converted = ir.from_proto(model)
    add_functions(converted)
    return ir.to_proto(converted)


def run(model: onnx.ModelProto, plugin: bool, rows: int = TOKENS) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if plugin:
        onnx_moe.register(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    hidden = np.random.default_rng(1).standard_normal((rows, COLUMNS)).astype(np.float32)
    outputs: list[np.ndarray] = session.run(None, {"hidden": hidden})
    return outputs


def assert_close(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert np.linalg.norm(one - other) <= 2e-6 * np.linalg.norm(other)


@pytest.mark.parametrize("opset", [MINIMUM_OPSET, 20, 22, 23, 24])
def test_stock_runtime_gives_the_plugins_values(opset: int) -> None:
    model = with_functions(block_model(opset=opset))
    onnx.checker.check_model(model, full_check=True)
    assert_close(run(model, plugin=False), run(block_model(opset=opset), plugin=True))


def test_equal_uses_share_a_body_and_others_do_not() -> None:
    model = with_functions(block_model())
    assert [(function.name, function.overload) for function in model.functions] == [
        (ROUTER, "1"),
        (EXPERT_GEMM, "2"),
        (EXPERT_GEMM, "3"),
    ]
    assert [node.overload for node in model.graph.node] == ["1", "2", "3"]
    router, first, _ = block_model().graph.node
    second = helper.make_node(EXPERT_GEMM, first.input, ["y"], domain=DOMAIN)
    shared = with_functions(block_model(nodes=[router, first, second]))
    assert [node.overload for node in shared.graph.node] == ["1", "2", "2"]
    assert len(shared.functions) == 2


def test_the_plugin_wins_over_the_body() -> None:
    model = with_functions(block_model())
    for function in model.functions:
        if function.name == EXPERT_GEMM:  # a body that shows when it runs
            body = [
                helper.make_node("Mul", ["x", "x"], ["squares"]),
                helper.make_node("Sqrt", ["squares"], ["y"]),
            ]
            del function.node[:]
            function.node.extend(body)
            function.output[0] = "y"
    _, y = run(block_model(), plugin=True)
    assert_close(run(model, plugin=True)[1:], [y])
    sabotaged = run(model, plugin=False)[1]
    assert sabotaged.shape == (TOKENS, COLUMNS)


def test_stripping_gives_the_model_back() -> None:
    original = ir.from_proto(block_model())
    before = ir.to_proto(original).SerializeToString(deterministic=True)
    add_functions(original)
    add_functions(original)
    assert len(original.functions) == 3
    strip_functions(original)
    model = ir.to_proto(original)
    assert model.SerializeToString(deterministic=True) == before
    assert {opset.domain: opset.version for opset in model.opset_import}[DOMAIN] == VERSION
    assert_close(run(model, plugin=True), run(block_model(), plugin=True))
    with pytest.raises(Exception, match=ROUTER):
        run(model, plugin=False)


def test_nodes_in_subgraphs_are_reached() -> None:
    router, first, second = block_model().graph.node
    branch = helper.make_graph(
        [helper.make_node(EXPERT_GEMM, second.input, ["y_inner"], domain=DOMAIN)],
        "branch",
        [],
        [helper.make_tensor_value_info("y_inner", TensorProto.FLOAT, None)],
    )
    model = block_model(
        nodes=[
            router,
            first,
            helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
        ]
    )
    assert_close(run(with_functions(model), plugin=False), run(block_model(), plugin=True))


def test_nodes_in_functions_are_refused() -> None:
    router, first, second = block_model().graph.node
    layer = helper.make_function(
        "test.layers",
        "Layer",
        list(first.input),
        list(first.output),
        [first],
        [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)],
    )
    call = helper.make_node("Layer", first.input, first.output, domain="test.layers")
    model = block_model(nodes=[router, call, second])
    model.functions.append(layer)
    model.opset_import.append(helper.make_opsetid("test.layers", 1))
    with pytest.raises(InvalidModelError, match=r"Function test\.layers\.Layer .* inline the model's functions first"):
        with_functions(model)


def test_an_id_outside_of_the_experts_stops_the_run() -> None:
    inputs = ["x", "ids", "codes", "scales"]
    block = block_model()
    for expert_id in (-1, NUM_EXPERTS):
        graph = helper.make_graph(
            [helper.make_node(EXPERT_GEMM, inputs, ["y"], domain=DOMAIN)],
            "product",
            [],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, ROWS])],
            [
                *block.graph.initializer,
                numpy_helper.from_array(np.ones((1, COLUMNS), np.float32), "x"),
                numpy_helper.from_array(np.array([[expert_id]], np.int32), "ids"),
            ],
        )
        model = helper.make_model(graph, opset_imports=block.opset_import, ir_version=10)
        with pytest.raises(Exception, match="out of data bounds"):
            run_without_inputs(with_functions(model))


def run_without_inputs(model: onnx.ModelProto) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, {})


def test_the_weights_are_not_decoded_when_the_model_is_loaded(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    model = with_functions(block_model())
    onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in constants(optimized.graph)}
    assert sizes["codes"] == NUM_EXPERTS * ROWS * COLUMNS // 2
    assert max(size for name, size in sizes.items() if name != "codes") < NUM_EXPERTS * ROWS * COLUMNS // 2


def constants(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The initializers and constants of a graph and its subgraphs."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
            if attribute.HasField("g"):
                found.extend(constants(attribute.g))
    return found


_PEAK_MEMORY = """
import resource
import numpy as np, onnx_ir as ir, onnxruntime
from onnx import TensorProto, helper
from onnx_moe.functions import add_functions
experts, rows, columns, tokens, slots = 32, 512, 1024, 128, 4
shapes = {
    "x": (tokens, columns),
    "ids": (tokens, slots),
    "w": (experts, rows, columns // 2),
    "s": (experts, rows, columns // 32),
}
types = {"x": TensorProto.FLOAT, "ids": TensorProto.INT32, "w": TensorProto.UINT8, "s": TensorProto.UINT8}
node = helper.make_node("MoEExpertGemmFP4", list(shapes), ["y"], domain="onnx_moe")
graph = helper.make_graph([node], "g",
    [helper.make_tensor_value_info(name, types[name], shapes[name]) for name in shapes],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [tokens, slots, rows])])
opsets = [helper.make_opsetid("", 21), helper.make_opsetid("onnx_moe", 1)]
model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
add_functions(model)
session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
feeds = {name: np.full(shapes[name], 1, helper.tensor_dtype_to_np_dtype(types[name])) for name in shapes}
feeds["ids"][...] = np.arange(tokens * slots).reshape(tokens, slots) % experts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session.run(None, feeds)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_grows_with_one_expert_not_with_the_slots() -> None:
    output = subprocess.run([sys.executable, "-c", _PEAK_MEMORY], check=True, capture_output=True, text=True).stdout
    # One expert in float takes 2 MiB, the weights of all 512 slots would take 1 GiB, those of the 32 experts 64 MiB.
    assert int(output) < 32 * 1024


def test_a_model_without_our_nodes_is_left_alone() -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7))
    add_functions(model)
    assert model.ir_version == 7
    assert len(model.functions) == 0


def test_old_operators_are_refused() -> None:
    with pytest.raises(InvalidModelError, match=r"version 17 .* 18 or newer"):
        with_functions(block_model(opset=17))


def test_wrong_attributes_are_refused() -> None:
    with pytest.raises(InvalidAttributeError, match="format='int4'"):
        with_functions(block_model({"format": "int4"}))


def test_unknown_operators_are_refused() -> None:
    node = helper.make_node("MoEDream", ["hidden"], ["y"], domain=DOMAIN, name="dreaming")
    with pytest.raises(InvalidModelError, match=r"dreaming.*MoEDream.*MoERouter"):
        with_functions(block_model(nodes=[node]))
