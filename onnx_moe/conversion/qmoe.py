"""com.microsoft.QMoE in FP4 → MoERouter and two MoEExpertGemmFP4 nodes on the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from onnx_moe.conversion.contrib import OURS, SOURCE_DOMAIN, described, node_input, route, swiglu
from onnx_moe.errors import InvalidModelError

_FORMATS = {"fp4": "mxfp4", "nvfp4": "nvfp4"}

#: Positions of QMoE's inputs.
_UP = {"weights": 2, "scales": 3, "global_scale": 15, "bias": 4}
_DOWN = {"weights": 5, "scales": 6, "global_scale": 16, "bias": 7}
_MIXING = 14


def check_qmoe(node: ir.Node) -> None:
    """InvalidModelError unless `node` has the form in which ONNX Runtime's CPU runs FP4."""
    name = described(node)
    quant_type = node.attributes.get_string("quant_type", "int")
    if quant_type not in _FORMATS:
        raise InvalidModelError(
            f"{name} has quant_type={quant_type!r}, but only 'fp4' and 'nvfp4' can be taken as they are: quantize the "
            "original weights instead."
        )
    for attribute, value in {"weights_prepacked": 1, "swiglu_fusion": 1, "expert_weight_bits": 4}.items():
        actual = node.attributes.get_int(attribute, 0)
        if actual != value:
            raise InvalidModelError(
                f"{name} has {attribute}={actual}, but only {value} is converted: write the model again in that form."
            )
    activation = node.attributes.get_string("activation_type", "relu")
    if activation != "swiglu":
        raise InvalidModelError(f"{name} has activation_type={activation!r}, but only 'swiglu' is converted in FP4.")
    for positions in (_UP, _DOWN):
        scales = node_input(node, positions["scales"])
        if scales is None or scales.const_value is None:
            raise InvalidModelError(f"{name}: input {positions['scales']}, scales, is no constant of the model.")


class ConvertQMoE(pattern.RewriteRuleClassBase):
    """QMoE → router, gate and up projection, down projection."""

    def pattern(self, op: Any, x: ir.Value, router_probabilities: ir.Value) -> Any:
        return op.QMoE(x, router_probabilities, _allow_other_inputs=True, _domain=SOURCE_DOMAIN, _outputs=["y"])

    def rewrite(self, op: Any, x: ir.Value, router_probabilities: ir.Value, y: ir.Value) -> Any:
        node = y.producer()
        assert node is not None
        format = _FORMATS[node.attributes.get_string("quant_type", "")]
        ids, weights = route(op, node, router_probabilities, node_input(node, _MIXING))
        hidden = op.MoEExpertGemmFP4(x, ids, *_matrix(node, _UP), format=format, **swiglu(node), **OURS)
        return op.MoEExpertGemmFP4(hidden, ids, *_matrix(node, _DOWN), weights, format=format, **OURS)


def _matrix(node: ir.Node, positions: dict[str, int]) -> tuple[ir.Value | None, ...]:
    """weights, scales, global_scale and bias of a projection. Scales are bytes here, whatever type QMoE gives them."""
    scales = node_input(node, positions["scales"])
    assert scales is not None
    _to_bytes(scales)
    return tuple(node_input(node, index) for index in positions.values())


def _to_bytes(value: ir.Value) -> None:
    """The same bytes as uint8; those of external data are not read."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype == ir.DataType.UINT8:
        return
    if isinstance(tensor, ir.ExternalTensor):
        value.const_value = ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            ir.DataType.UINT8,
            shape=tensor.shape,
            name=value.name or "",
            base_dir=tensor.base_dir,
        )
    else:
        array = np.frombuffer(tensor.tobytes(), np.uint8).reshape(tensor.shape.numpy())
        value.const_value = ir.tensor(array, name=value.name)
    value.type = ir.TensorType(ir.DataType.UINT8)
