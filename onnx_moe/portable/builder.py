"""Writing function bodies as Python expressions: `op.Add(x, 1.0)` adds a node and returns its output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

#: An input of a node: a value, a constant (Python numbers become FLOAT, INT64 or BOOL), or None if omitted.
Operand = ir.Value | np.ndarray | float | int | bool | Sequence[float] | Sequence[int] | None


class BodyBuilder:
    """Collects the nodes of a function body, or of a subgraph in it.

    Any attribute of the builder is the ONNX operator of that name, called for its first output. Constants
    become Constant nodes at the start of the function, one for each distinct value, and every name is unique
    in the function, as nested scopes demand.
    """

    def __init__(self, parent: BodyBuilder | None = None) -> None:
        self._root: BodyBuilder = parent._root if parent else self
        self._numbers = itertools.count()
        self._constants: dict[tuple[object, ...], ir.Node] = {}
        self._nodes: list[ir.Node] = []

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def add(*operands: Operand, **attributes: Any) -> ir.Value:
            return self.outputs(op_type, 1, *operands, **attributes)[0]

        return add

    def outputs(self, op_type: str, num_outputs: int, /, *operands: Operand, **attributes: Any) -> Sequence[ir.Value]:
        """Adds a node and returns its first `num_outputs` outputs."""
        inputs = [self._value(operand) for operand in operands]
        node = self._node(op_type, inputs, attributes, num_outputs)
        self._nodes.append(node)
        return node.outputs

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int] | None = None) -> ir.Value:
        """A formal input of a subgraph."""
        dimensions = None if shape is None else ir.Shape(shape)
        return ir.Value(name=self._unique(name), type=ir.TensorType(dtype), shape=dimensions)

    def graph(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], version: int = 1) -> ir.Graph:
        """The collected nodes as a graph that uses `version` of the standard operators."""
        nodes = [*self._constants.values(), *self._nodes]
        return ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": version}, name=self._unique("body"))

    def _unique(self, name: str) -> str:
        return f"{name}_{next(self._root._numbers)}"

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], num_outputs: int
    ) -> ir.Node:
        name = self._unique(op_type)
        node = ir.node(op_type, inputs, attributes, num_outputs=num_outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = name if num_outputs == 1 else f"{name}_{index}"
        return node

    def _value(self, operand: Operand) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        array = np.asarray(operand)
        if not isinstance(operand, np.ndarray) and array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._root._constants:
            attributes = {"value": ir.tensor(array)}
            self._root._constants[key] = self._root._node("Constant", [], attributes, 1)
        return self._root._constants[key].outputs[0]
