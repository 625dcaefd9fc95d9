"""A head that is the embedding: one matrix in the external data, under two names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch

from onnx_moe.export.checkpoint.units import DenseUnit, Unit


def share_tied_heads(graph: ir.Graph, units: dict[str, Unit], lazy: Callable[[Unit, str], ir.LazyTensor]) -> None:
    """Lets products of `graph` with the transpose of a weight that is written anyway read that one: a MatMul becomes a
    Gemm, which ONNX Runtime computes with the same bits.

    The matrix still is an initializer of its own, at the other's place: ONNX Runtime packs a copy of it and lets the
    file's pages go, which it keeps while something else reads the same initializer. Float32 only: in half precision
    ONNX Runtime may compute the two operators in different precisions.

    lazy: makes the tensor of a unit's output of that name.
    """
    written = {id(unit.source): unit for unit in units.values() if isinstance(unit, DenseUnit) and _is_as_stored(unit)}
    for name, own in list(units.items()):
        if not isinstance(own, DenseUnit) or not own.transposed or own.output.dtype != torch.float32:
            continue
        unit = written.get(id(own.source))
        products = [usage.node for usage in graph.initializers[name].uses() if usage.idx == 1]
        others = len(graph.initializers[name].uses()) - len(products)
        if unit is None or unit.output.dtype != own.output.dtype or others or not all(map(_is_product, products)):
            continue
        alias = name.removesuffix(".T")
        alias = f"{alias}.head" if alias in graph.initializers else alias
        shared = replace(unit, output=replace(unit.output, aliases=(*unit.output.aliases, alias)))
        written[id(own.source)] = shared
        units |= dict.fromkeys(shared.output.names, shared)
        matrix = ir.Value(
            name=alias,
            shape=ir.Shape(shared.output.shape),
            type=ir.TensorType(shared.output.ir_type),
            const_value=lazy(shared, alias),
        )
        graph.register_initializer(matrix)
        for node in products:
            _multiply_transposed(graph, node, matrix)
        del graph.initializers[name], units[name]


def _is_as_stored(unit: DenseUnit) -> bool:
    return not unit.transposed and unit.change is None


def _is_product(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "MatMul"


def _multiply_transposed(graph: ir.Graph, product: ir.Node, matrix: ir.Value) -> None:
    """Replaces a MatMul of x [..., K] by a Gemm of its rows with the transpose of `matrix` [N, K]."""
    x, output = product.inputs[0], product.outputs[0]
    assert matrix.shape is not None
    columns, inner = matrix.shape.numpy()
    rows = ir.node("Reshape", [x, _sizes(graph, f"{matrix.name}.rows", [-1, inner])])
    gemm = ir.node("Gemm", [rows.outputs[0], matrix], {"transB": 1})
    leading = ir.node("Shape", [x], {"end": -1})
    shape = ir.node("Concat", [leading.outputs[0], _sizes(graph, f"{matrix.name}.columns", [columns])], {"axis": 0})
    result = ir.node(
        "Reshape", [gemm.outputs[0], shape.outputs[0]], outputs=[ir.Value(name=output.name)], name=product.name
    )
    result.outputs[0].type, result.outputs[0].shape = output.type, output.shape
    nodes = [rows, gemm, leading, shape, result]
    ir.convenience.replace_nodes_and_values(graph, product, [product], nodes, [output], result.outputs)


def _sizes(graph: ir.Graph, name: str, sizes: list[int]) -> ir.Value:
    """The initializer `name`; the one that is there, where two products share a matrix."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(sizes, np.int64), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape([len(sizes)]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]
