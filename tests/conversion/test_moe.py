"""Converted MoE nodes compute what ONNX Runtime's own compute: on FP4 numbers, which quantising does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

import onnx_moe
from onnx_moe.conversion import convert
from onnx_moe.errors import InvalidModelError

_EXPERTS, _HIDDEN, _INTERMEDIATE, _TOP_K = 6, 64, 32, 3


def write_model(path: Path, activation: str = "silu", fusion: int = 0, **attributes: Any) -> Path:
    """A MoE node with biases: inputs x [T, H] and logits [T, E]."""
    random = np.random.default_rng(0)
    gated = 2 if activation == "swiglu" else 1
    initializers = []
    for name, rows, columns in (("fc1", gated * _INTERMEDIATE, _HIDDEN), ("fc2", _HIDDEN, _INTERMEDIATE)):
        weights = random.standard_normal((_EXPERTS, rows, columns)).astype(np.float32) * 0.1
        exact = onnx_moe.dequantize(onnx_moe.quantize(weights))
        bias = random.standard_normal((_EXPERTS, rows)).astype(np.float32)
        initializers += [onnx.numpy_helper.from_array(exact, f"{name}_weights")]
        initializers += [onnx.numpy_helper.from_array(bias, f"{name}_bias")]
    swiglu = {"swiglu_fusion": fusion, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0}
    node = helper.make_node(
        "MoE",
        ["x", "logits", "fc1_weights", "fc1_bias", "fc2_weights", "fc2_bias"],
        ["y"],
        name="block",
        domain="com.microsoft",
        k=_TOP_K,
        activation_type=activation,
        **(swiglu if fusion else {}),
        **attributes,
    )
    sizes = {"x": _HIDDEN, "logits": _EXPERTS, "y": _HIDDEN}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["t", size]) for name, size in sizes.items()}
    graph = helper.make_graph([node], "moe", [values["x"], values["logits"]], [values["y"]], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize(
    ("activation", "fusion"), [("silu", 0), ("relu", 0), ("gelu", 0), ("identity", 0), ("swiglu", 1)]
)
def test_the_same_numbers(activation: str, fusion: int, normalize: int, tmp_path: Path) -> None:
    source = write_model(tmp_path / "moe.onnx", activation, fusion, normalize_routing_weights=normalize)
    random = np.random.default_rng(1)
    feed = {
        "x": random.standard_normal((7, _HIDDEN)).astype(np.float32),
        "logits": random.standard_normal((7, _EXPERTS)).astype(np.float32),
    }
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    expected = session.run(None, feed)[0]
    model = ir.load(source)
    assert convert(model) == 1
    assert "fc1_weights" not in model.graph.initializers
    output = tmp_path / "ours.onnx"
    ir.save(model, output)
    actual = onnx_moe.InferenceSession(output).run(None, feed)[0]
    # Both are float32-accurate: two matrix products of 1e-6 each, on both sides.
    assert np.linalg.norm(actual - expected) <= 4e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_sparse_mixer": 1}, r"MoE node 'block' has use_sparse_mixer=1"),
        ({"activation": "swiglu", "fusion": 2}, r"MoE node 'block' has swiglu_fusion=2, but only 1"),
        ({"activation": "tanh"}, r"MoE node 'block' has activation_type='tanh', which is not converted"),
    ],
)
def test_other_forms_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = ir.load(write_model(tmp_path / "moe.onnx", **arguments))
    with pytest.raises(InvalidModelError, match=message):
        convert(model)
    assert [node.op_type for node in model.graph] == ["MoE"]
