"""ONNX Runtime's own com.microsoft.QMoE on the codes of an exported block: the peer that the demo measures against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from onnx_moe.quantization import QuantizedWeights

_SCALE_TYPES = {"mxfp4": onnx.TensorProto.FLOAT8E8M0, "nvfp4": onnx.TensorProto.FLOAT8E4M3FN}
_QUANT_TYPES = {"mxfp4": "fp4", "nvfp4": "nvfp4"}


def _interleave(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    """Gate and up row by row, the only order that QMoE's FP4 kernel takes: [E, 2I, …] from gate rows, then up rows."""
    experts, count, columns = rows.shape
    return np.ascontiguousarray(rows.reshape(experts, 2, count // 2, columns).swapaxes(1, 2)).reshape(rows.shape)


def qmoe_session(
    gate_up: QuantizedWeights, down: QuantizedWeights, top_k: int, folder: Path, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """A session of one QMoE node: inputs x [T, H], keys [T, E] (what to choose by) and weights [T, E]; output y.

    gate_up holds gate rows, then up rows. The model is written into `folder`.
    """
    helper, tensor = onnx.helper, onnx.TensorProto
    experts, hidden_size, _ = down.weights.shape
    initializers = []

    def constant(name: str, element_type: int, array: NDArray[np.generic]) -> None:
        initializers.append(helper.make_tensor(name, element_type, array.shape, array.tobytes(), raw=True))

    ones = np.ones(experts, np.float32)
    constant("gate_up", tensor.UINT8, _interleave(gate_up.weights))
    constant("gate_up_scales", _SCALE_TYPES[gate_up.format], _interleave(gate_up.scales))
    constant("gate_up_global", tensor.FLOAT, ones if gate_up.global_scale is None else gate_up.global_scale)
    constant("down", tensor.UINT8, down.weights)
    constant("down_scales", _SCALE_TYPES[down.format], down.scales)
    constant("down_global", tensor.FLOAT, ones if down.global_scale is None else down.global_scale)
    inputs = ["x", "keys", "gate_up", "gate_up_scales", "", "down", "down_scales", *[""] * 7, "weights"]
    node = helper.make_node(
        "QMoE",
        [*inputs, "gate_up_global", "down_global"],
        ["y"],
        domain="com.microsoft",
        k=top_k,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=0,
        expert_weight_bits=4,
        block_size=gate_up.block_size,
        quant_type=_QUANT_TYPES[gate_up.format],
        weights_prepacked=1,
    )
    graph = helper.make_graph(
        [node],
        "qmoe",
        [
            helper.make_tensor_value_info("x", tensor.FLOAT, ["tokens", hidden_size]),
            helper.make_tensor_value_info("keys", tensor.FLOAT, ["tokens", experts]),
            helper.make_tensor_value_info("weights", tensor.FLOAT, ["tokens", experts]),
        ],
        [helper.make_tensor_value_info("y", tensor.FLOAT, ["tokens", hidden_size])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = folder / "qmoe.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="qmoe.onnx.data")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
