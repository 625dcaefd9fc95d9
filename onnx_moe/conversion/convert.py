"""`convert`: every MoE node of ONNX Runtime's domain to ours."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleSet

from onnx_moe.conversion.contrib import SOURCE_DOMAIN
from onnx_moe.conversion.moe import ConvertMoE, check_moe
from onnx_moe.conversion.qmoe import ConvertQMoE, check_qmoe
from onnx_moe.errors import InvalidModelError
from onnx_moe.operators import DOMAIN, VERSION

_CHECKS = {"QMoE": check_qmoe, "MoE": check_moe}


def convert(model: ir.Model, *, format: str = "mxfp4", scale: str = "mse") -> int:
    """Replaces each com.microsoft.QMoE node in FP4 and each MoE node of `model`, in place; returns how many.

    QMoE's weights (quant_type fp4 or nvfp4) keep their bytes. MoE's, in floating point, are quantised to `format` with
    block scales chosen by `scale`, as in `quantize`. Raises InvalidModelError, naming the node and changing nothing,
    for a node of another form, and for a model without such nodes.
    """
    nodes = [
        node
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.domain == SOURCE_DOMAIN and node.op_type in _CHECKS
    ]
    if not nodes:
        raise InvalidModelError(
            f"The model has no node MoE or QMoE of the domain {SOURCE_DOMAIN}: there is nothing to convert."
        )
    for node in nodes:
        _CHECKS[node.op_type](node)
    rules = [ConvertQMoE.rule(), ConvertMoE.rule(format, scale)]  # type: ignore[no-untyped-call]
    RewriteRuleSet(rules).apply_to_model(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)  # and with them the weights in floating point
    model.opset_imports[DOMAIN] = VERSION
    return len(nodes)
