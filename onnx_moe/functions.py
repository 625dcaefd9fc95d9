"""Portable bodies: model-local functions that let a model run where the plugin is not registered.

ONNX Runtime uses the plugin's kernel for a node when it is registered, and the function of the same domain,
name and overload when it is not. A body is specialised for the attributes of its nodes and for the inputs
and outputs that they omit; each specialisation is an overload, which stock ONNX Runtime tells apart from 1.27 on (1.24
and 1.25 were seen not to). With the plugin the bodies are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from onnx_moe.errors import InvalidModelError
from onnx_moe.operators import (
    BLOCK,
    DOMAIN,
    ROUTER,
    OperatorDefinition,
    block_parts,
    expert_gemm_attributes,
    get_operator,
    load_operators,
    router_attributes,
    validate_attributes,
)
from onnx_moe.portable.builder import BodyBuilder
from onnx_moe.portable.expert_gemm import expert_gemm_body
from onnx_moe.portable.router import router_body

#: The first version of the standard operators with all that the bodies use (Split with num_outputs).
MINIMUM_OPSET = 18

#: The first ONNX IR version with overloads of functions.
_MINIMUM_IR_VERSION = 10

#: Operator, attributes, which of the operator's inputs the node has, and how many of its outputs.
_Specialisation = tuple[str, tuple[tuple[str, Any], ...], tuple[bool, ...], int]


def add_functions(model: ir.Model) -> None:
    """Gives every onnx_moe node of `model` a body in standard operators, in place.

    Bodies that the model already has are replaced. Nodes in subgraphs are reached too.
    Raises InvalidModelError if the model's standard operators are older than MINIMUM_OPSET, if a node is none of
    the domain's operators, or if a node lies in a function; InvalidAttributeError for wrong attributes.
    """
    strip_functions(model)
    _refuse_nodes_in_functions(model)
    opset = model.opset_imports.get("", 0)
    overloads: dict[_Specialisation, str] = {}
    for node in list(_nodes(model)):
        if opset < MINIMUM_OPSET:
            raise InvalidModelError(
                f"The model uses version {opset} of the standard operators: portable bodies take "
                f"{MINIMUM_OPSET} or newer, so convert it first."
            )
        specialisation = _specialisation(node)
        if specialisation not in overloads:
            overloads[specialisation] = str(len(overloads) + 1)
            function = _build_function(specialisation, overloads[specialisation], opset)
            model.functions[function.identifier()] = function
        node.overload = overloads[specialisation]
    if overloads:
        model.ir_version = max(model.ir_version, _MINIMUM_IR_VERSION)


def strip_functions(model: ir.Model) -> None:
    """Removes the bodies that `add_functions` added, in place: the model then needs the plugin."""
    for identifier in [identifier for identifier in model.functions if identifier[0] == DOMAIN]:
        del model.functions[identifier]
    for node in _nodes(model):
        node.overload = ""


def _refuse_nodes_in_functions(model: ir.Model) -> None:
    for function in model.functions.values():
        if any(node.domain == DOMAIN for node in ir.traversal.RecursiveGraphIterator(function)):
            raise InvalidModelError(
                f"Function {function.domain}.{function.name} calls operators of {DOMAIN}: ONNX Runtime (1.32) finds no "
                "overload from inside a function, so inline the model's functions first "
                "(onnx.inliner.inline_local_functions)."
            )


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The onnx_moe nodes of the model, of its subgraphs and of its functions."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if node.domain == DOMAIN:
                yield node


def _specialisation(node: ir.Node) -> _Specialisation:
    if node.op_type not in load_operators():
        raise InvalidModelError(
            f"Node {node.name!r}: {DOMAIN}.{node.op_type} is none of the domain's operators, which are "
            f"{', '.join(load_operators())}."
        )
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    present = [value is not None for value in node.inputs]
    missing = len(get_operator(node.op_type).inputs) - len(present)
    inputs = (*present, *[False] * missing)
    return node.op_type, tuple(sorted(attributes.items())), inputs, len(node.outputs)


def _build_function(specialisation: _Specialisation, overload: str, opset: int) -> ir.Function:
    op_type, attributes, present, num_outputs = specialisation
    definition = get_operator(op_type)
    inputs = [ir.Value(name=value.name) for value in definition.inputs]
    arguments: list[Any] = [value if given else None for value, given in zip(inputs, present, strict=True)]
    op = BodyBuilder()
    outputs: tuple[ir.Value, ...]
    if op_type == ROUTER:
        # The last input, next_gate_weight, changes no output.
        outputs = router_body(op, *arguments[:4], options=router_attributes(dict(attributes)))
    elif op_type == BLOCK:
        outputs = (_block_body(op, arguments, validate_attributes(BLOCK, dict(attributes))),)
    else:
        outputs = (expert_gemm_body(op, *arguments, options=expert_gemm_attributes(dict(attributes))),)
    return ir.Function(
        DOMAIN,
        op_type,
        overload,
        graph=op.graph(inputs, outputs[:num_outputs], opset),
        attributes=_formal_attributes(definition),
    )


def _block_body(op: BodyBuilder, arguments: list[Any], attributes: dict[str, Any]) -> ir.Value:
    """The bodies of the three nodes that MoEBlockFP4 stands for, one after the other."""
    hidden_states = arguments[0]
    of_router, of_gate_up, of_down = block_parts(attributes)
    ids, weights, _ = router_body(op, *arguments[:4], options=router_attributes(of_router))
    gate_up = expert_gemm_attributes(of_gate_up)
    codes, scales, global_scale, bias = arguments[4:8]
    intermediate = expert_gemm_body(op, hidden_states, ids, codes, scales, global_scale, bias, None, options=gate_up)
    down = expert_gemm_attributes(of_down)
    codes, scales, global_scale, bias = arguments[8:12]
    return expert_gemm_body(op, intermediate, ids, codes, scales, global_scale, bias, weights, options=down)


def _formal_attributes(definition: OperatorDefinition) -> list[ir.Attr]:
    """All attributes of the operator: a function declares what its nodes may carry, used or not."""
    kinds = {"int": ir.AttributeType.INT, "float": ir.AttributeType.FLOAT, "string": ir.AttributeType.STRING}
    return [ir.Attr(attribute.name, kinds[attribute.type], attribute.default) for attribute in definition.attributes]
