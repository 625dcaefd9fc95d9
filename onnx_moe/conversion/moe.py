"""com.microsoft.MoE, whose weights are floating point → MoERouter and two MoEExpertGemmFP4 nodes, quantised."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from onnx_moe.conversion.contrib import OURS, SOURCE_DOMAIN, described, node_input, route, swiglu
from onnx_moe.errors import InvalidModelError, OnnxMoeError
from onnx_moe.quantization import quantize

#: activation_type of MoE, and our activation. ONNX Runtime's CPU computes gelu by tanh.
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "silu": "silu", "identity": "none"}

#: Positions of MoE's inputs.
_UP = {"weights": 2, "bias": 3}
_DOWN = {"weights": 4, "bias": 5}
_THIRD = 6


def check_moe(node: ir.Node) -> None:
    """InvalidModelError unless `node` has a form that two products in FP4 compute."""
    name = described(node)
    activation = node.attributes.get_string("activation_type", "relu")
    if activation != "swiglu" and activation not in _ACTIVATIONS:
        raise InvalidModelError(f"{name} has activation_type={activation!r}, which is not converted.")
    fusion = node.attributes.get_int("swiglu_fusion", 0)
    if activation == "swiglu" and fusion != 1:
        raise InvalidModelError(
            f"{name} has swiglu_fusion={fusion}, but only 1, gate and up row by row, is converted: it is the only one "
            "that ONNX Runtime's CPU computes."
        )
    if node_input(node, _THIRD) is not None:
        raise InvalidModelError(f"{name} has a third matrix (fc3_experts_weights), which is not converted.")
    if node.attributes.get_int("use_sparse_mixer", 0):
        raise InvalidModelError(f"{name} has use_sparse_mixer=1, whose routing is not converted.")
    for positions in (_UP, _DOWN):
        weights = node_input(node, positions["weights"])
        if weights is None or weights.const_value is None:
            raise InvalidModelError(f"{name}: input {positions['weights']}, weights, is no constant of the model.")


class ConvertMoE(pattern.RewriteRuleClassBase):
    """MoE → router and both projections, quantised to `format`."""

    def __init__(self, format: str, scale: str) -> None:
        super().__init__()
        self._format = format
        self._scale = scale

    def pattern(self, op: Any, x: ir.Value, router_probabilities: ir.Value) -> Any:
        return op.MoE(x, router_probabilities, _allow_other_inputs=True, _domain=SOURCE_DOMAIN, _outputs=["y"])

    def rewrite(self, op: Any, x: ir.Value, router_probabilities: ir.Value, y: ir.Value) -> Any:
        node = y.producer()
        assert node is not None
        ids, weights = route(op, node, router_probabilities, None)
        activation = node.attributes.get_string("activation_type", "relu")
        attributes = swiglu(node) if activation == "swiglu" else {"activation": _ACTIVATIONS[activation]}
        up, down = self._matrix(op, node, _UP), self._matrix(op, node, _DOWN)
        hidden = op.MoEExpertGemmFP4(x, ids, *up, format=self._format, **attributes, **OURS)
        return op.MoEExpertGemmFP4(hidden, ids, *down, weights, format=self._format, **OURS)

    def _matrix(self, op: Any, node: ir.Node, positions: dict[str, int]) -> tuple[ir.Value | None, ...]:
        """weights, scales, global_scale and bias of a projection."""
        value = node_input(node, positions["weights"])
        assert value is not None
        assert value.const_value is not None
        try:
            quantized = quantize(value.const_value.numpy(), self._format, scale=self._scale)
        except OnnxMoeError as error:
            raise type(error)(f"{described(node)}: {value.name}: {error}") from error
        parts = {
            "weights": quantized.weights,
            "scales": quantized.scales,
            "global_scale": quantized.global_scale,
        }
        constants = (
            None if array is None else op.initializer(ir.tensor(array), name=f"{value.name}_{kind}")
            for kind, array in parts.items()
        )
        return (*constants, node_input(node, positions["bias"]))
