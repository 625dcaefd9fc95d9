"""Converted models compute what ONNX Runtime's own QMoE computes on the original ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import onnx_moe
from onnx_moe.cli import app
from onnx_moe.conversion import convert
from onnx_moe.errors import InvalidModelError

_EXPERTS, _HIDDEN, _INTERMEDIATE, _TOP_K = 6, 64, 32, 3
_SCALES = {"fp4": (TensorProto.FLOAT8E8M0, "mxfp4", 32), "nvfp4": (TensorProto.FLOAT8E4M3FN, "nvfp4", 16)}


def write_model(
    path: Path, quant_type: str = "fp4", *, mixing: bool = False, bias: bool = False, **attributes: Any
) -> Path:
    """A QMoE node: inputs x [T, H], logits [T, E] and, with `mixing`, weights [T, E]."""
    scale_type, format, block = _SCALES.get(quant_type, _SCALES["fp4"])
    random = np.random.default_rng(0)
    initializers = []

    def constant(name: str, element_type: int, array: Any) -> None:
        initializers.append(helper.make_tensor(name, element_type, array.shape, array.tobytes(), raw=True))

    for name, rows, columns, exponent in (("fc1", 2 * _INTERMEDIATE, _HIDDEN, -5), ("fc2", _HIDDEN, _INTERMEDIATE, -4)):
        weights = random.standard_normal((_EXPERTS, rows, columns)).astype(np.float32)
        quantized = onnx_moe.quantize(weights, format)
        constant(f"{name}_weights", TensorProto.UINT8, quantized.weights)
        constant(f"{name}_scales", scale_type, quantized.scales)
        # QMoE's NVFP4 loses digits unless the global scales are powers of two.
        constant(f"{name}_global", TensorProto.FLOAT, np.exp2(np.arange(_EXPERTS) % 3 + exponent).astype(np.float32))
        constant(f"{name}_bias", TensorProto.FLOAT, random.standard_normal((_EXPERTS, rows)).astype(np.float32))
    biases = ["fc1_bias", "fc2_bias"] if bias else ["", ""]
    inputs = ["x", "logits", "fc1_weights", "fc1_scales", biases[0], "fc2_weights", "fc2_scales", biases[1], *[""] * 6]
    defaults = {
        "k": _TOP_K,
        "normalize_routing_weights": 1,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.702,
        "activation_beta": 1.0,
        "swiglu_limit": 7.0,
        "expert_weight_bits": 4,
        "block_size": block,
        "quant_type": quant_type,
        "weights_prepacked": 1,
    }
    node = helper.make_node(
        "QMoE",
        [*inputs, "mixing" if mixing else "", "fc1_global", "fc2_global"],
        ["y"],
        name="block",
        domain="com.microsoft",
        **{**defaults, **attributes},
    )
    sizes = {"x": _HIDDEN, "logits": _EXPERTS, **({"mixing": _EXPERTS} if mixing else {})}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["t", size]) for name, size in sizes.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", _HIDDEN])
    graph = helper.make_graph([node], "qmoe", values, [result], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("quant_type", _SCALES)
def test_the_same_numbers(quant_type: str, bias: bool, mixing: bool, normalize: int, tmp_path: Path) -> None:
    source = write_model(
        tmp_path / "qmoe.onnx", quant_type, mixing=mixing, bias=bias, normalize_routing_weights=normalize
    )
    output = tmp_path / "ours.onnx"
    result = CliRunner().invoke(app, ["convert", str(source), str(output)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "1 node converted" in result.output
    random = np.random.default_rng(1)
    feed = {
        "x": random.standard_normal((7, _HIDDEN)).astype(np.float32),
        "logits": random.standard_normal((7, _EXPERTS)).astype(np.float32),
    }
    if mixing:
        feed["mixing"] = random.random((7, _EXPERTS)).astype(np.float32)
    expected = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    actual = onnx_moe.InferenceSession(output).run(None, feed)[0]
    # Both are float32-accurate: two matrix products of 1e-6 each, on both sides.
    assert np.linalg.norm(actual - expected) <= 4e-6 * np.linalg.norm(expected)
    assert not [node for node in ir.load(output).graph if node.domain == "com.microsoft"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"quant_type": "int"}, r"QMoE node 'block' has quant_type='int', but only 'fp4' and 'nvfp4'"),
        ({"weights_prepacked": 0}, r"has weights_prepacked=0, but only 1 is converted"),
        ({"activation_type": "gelu"}, r"has activation_type='gelu', but only 'swiglu'"),
    ],
)
def test_other_forms_are_refused(attributes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = ir.load(write_model(tmp_path / "qmoe.onnx", **attributes))
    with pytest.raises(InvalidModelError, match=message):
        convert(model)
    assert [node.op_type for node in model.graph] == ["QMoE"]


def test_a_model_without_such_nodes() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21})
    with pytest.raises(InvalidModelError, match="there is nothing to convert"):
        convert(ir.Model(graph, ir_version=10))
