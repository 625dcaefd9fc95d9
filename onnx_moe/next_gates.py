"""Telling routers of the next layer's router, whose choice can then be foreseen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx_ir as ir

from onnx_moe.functions import strip_functions
from onnx_moe.operators import BLOCK, DOMAIN, ROUTER

_GATE_WEIGHT = 1
#: Where the operators have next_gate_weight.
_NEXT_GATE_WEIGHT = {ROUTER: 4, BLOCK: 12}


def add_next_gates(model: ir.Model) -> int:
    """Gives each MoERouter and MoEBlockFP4 of the graph the next one's gate_weight as next_gate_weight, in place.

    It changes no output and adds no bytes: the nodes share the matrix. A session with onnx_moe.prefetch = next-gate
    reads experts ahead by it. Left as they are: routers of logits, and those whose next one has another hidden size or
    a matrix that is no initializer. Portable bodies are removed if anything changes; `add_functions` makes new ones.
    Returns how many nodes have the input then.
    """
    routers = [node for node in model.graph if node.domain == DOMAIN and node.op_type in _NEXT_GATE_WEIGHT]
    pairs = list(_pairs(routers))
    if pairs:
        strip_functions(model)
    for node, gate in pairs:
        index = _NEXT_GATE_WEIGHT[node.op_type]
        node.resize_inputs(max(len(node.inputs), index + 1))
        node.replace_input_with(index, gate)
    return len(pairs)


def _pairs(routers: list[ir.Node]) -> Iterator[tuple[ir.Node, ir.Value]]:
    for node, following in itertools.pairwise(routers):
        own, gate = (
            each.inputs[_GATE_WEIGHT] if len(each.inputs) > _GATE_WEIGHT else None for each in (node, following)
        )
        if own is None or gate is None or not gate.is_initializer():
            continue
        if own.shape is not None and gate.shape is not None and own.shape[1] == gate.shape[1]:
            yield node, gate
