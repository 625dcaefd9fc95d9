"""What com.microsoft's MoE and QMoE nodes have in common: how they route, which attributes they have."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from onnx_moe.operators import DOMAIN, VERSION

SOURCE_DOMAIN = "com.microsoft"

#: Our attributes of every node that a rewriting makes.
OURS = {"_domain": DOMAIN, "_version": VERSION}


def node_input(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`; None where the node omits it."""
    return node.inputs[index] if index < len(node.inputs) else None


def described(node: ir.Node) -> str:
    """The node, for messages."""
    return f"{node.op_type} node {(node.name or node.outputs[0].name)!r}"


def route(op: Any, node: ir.Node, router_probabilities: ir.Value, mixing: ir.Value | None) -> tuple[Any, Any]:
    """Ids and weights of the chosen experts.

    mixing: the weights [T, E] to take those of the chosen experts from; without, they are scores of what is chosen by.
    """
    ids, weights = op.MoERouter(
        router_probabilities,
        top_k=node.attributes.get_int("k", 1),
        scoring="softmax",
        normalize=node.attributes.get_int("normalize_routing_weights", 0),
        _outputs=2,
        **OURS,
    )
    if mixing is None:
        return ids, weights
    indices = op.Cast(ids, to=ir.DataType.INT64)
    return ids, op.Cast(op.GatherElements(mixing, indices, axis=-1), to=ir.DataType.FLOAT)


def swiglu(node: ir.Node) -> dict[str, Any]:
    """Our attributes for the node's swiglu with swiglu_fusion=1: gate and up row by row."""
    attributes = node.attributes
    limit = attributes.get_float("swiglu_limit", math.inf)  # infinite where there is none
    return {
        "activation": "silu",
        "gated": 1,
        "gate_layout": "interleaved",
        "alpha": attributes.get_float("activation_alpha", 1.0),
        "beta": attributes.get_float("activation_beta", 0.0),
        "limit": 0.0 if math.isinf(limit) else limit,
    }
