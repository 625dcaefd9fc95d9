"""Fusing router, gate and up projection and down projection into one MoEBlockFP4 node."""

from __future__ import annotations

import onnx_ir as ir

from onnx_moe.errors import InvalidModelError
from onnx_moe.functions import strip_functions
from onnx_moe.operators import (
    BLOCK,
    DOMAIN,
    EXPERT_GEMM,
    ROUTER,
    SHARED_BLOCK_ATTRIBUTES,
    VERSION,
    validate_attributes,
)


def fuse(model: ir.Model) -> int:
    """Replaces router → projection → projection by one MoEBlockFP4 node wherever `model` has the three, in place.

    Returns how many blocks were fused. The node gives the same bytes as the three. Left as they are: routers without
    gate_weight, routers and projections whose outputs something else uses too, projections that differ in format,
    block_size or accuracy_level. Portable bodies are removed if anything is fused; `add_functions` makes new ones.
    Raises InvalidModelError for a model that has no node of the domain.
    """
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain == DOMAIN]
    if not nodes:
        raise InvalidModelError(f"The model has no node of the domain {DOMAIN}: export it with onnx_moe.export first.")
    blocks = [block for node in nodes if (block := _find_block(node)) is not None]
    if blocks:
        strip_functions(model)
        model.opset_imports[DOMAIN] = VERSION
    for block in blocks:
        _replace(*block)
    return len(blocks)


def _find_block(down: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node] | None:
    """The router, the first and the second projection of a block that ends in `down`; None if it is no such block."""
    if down.op_type != EXPERT_GEMM:
        return None
    hidden, ids, weights = _input(down, 0), _input(down, 1), _input(down, 6)
    gate_up = hidden.producer() if hidden is not None else None
    router = weights.producer() if weights is not None else None
    if gate_up is None or router is None or hidden is None or ids is None or weights is None:
        return None
    fits = (
        (gate_up.domain, gate_up.op_type) == (DOMAIN, EXPERT_GEMM)
        and (router.domain, router.op_type) == (DOMAIN, ROUTER)
        and (ids, weights) == tuple(router.outputs[:2])
        and _input(gate_up, 1) is ids
        and _input(gate_up, 6) is None
        and _input(router, 1) is not None
        and _input(gate_up, 0) is _input(router, 0)
    )
    if not fits or not _same_format(gate_up, down):
        return None
    users = {ids: {gate_up, down}, weights: {down}, hidden: {down}, **{value: set() for value in router.outputs[2:]}}
    only_ours = all(
        {use.node for use in value.uses()} == expected and not value.is_graph_output()
        for value, expected in users.items()
    )
    return (router, gate_up, down) if only_ours else None


def _same_format(gate_up: ir.Node, down: ir.Node) -> bool:
    first, second = (validate_attributes(EXPERT_GEMM, _attributes(node)) for node in (gate_up, down))
    plain = second["activation"] == "none" and not second["gated"]
    return plain and all(first[name] == second[name] for name in SHARED_BLOCK_ATTRIBUTES)


def _replace(router: ir.Node, gate_up: ir.Node, down: ir.Node) -> None:
    inputs = [
        *(_input(router, index) for index in range(4)),
        *(_input(gate_up, index) for index in range(2, 6)),
        *(_input(down, index) for index in range(2, 6)),
        _input(router, 4),  # next_gate_weight
    ]
    while inputs[-1] is None:
        inputs.pop()
    block = ir.Node(
        DOMAIN,
        BLOCK,
        inputs,
        ir.convenience.convert_attributes({**_attributes(router), **_attributes(gate_up)}),
        name=down.name,
        num_outputs=1,
    )
    old, new = down.outputs[0], block.outputs[0]
    assert down.graph is not None  # it was found in one
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(down.graph, down, [router, gate_up, down], [block], [old], [new])


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _attributes(node: ir.Node) -> dict[str, int | float | str]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
