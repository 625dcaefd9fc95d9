"""Weights that the graph takes in another form than the checkpoint has them: turned, reshaped or cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from onnx_moe.export.checkpoint.sources import ParameterSource
from onnx_moe.export.checkpoint.units import DenseUnit, Job, Output, Unit, Write, tensor_bytes

_Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class View:
    """An output, and what makes it of the parameter in its element type."""

    output: Output
    change: _Change


@dataclass(frozen=True)
class ViewsUnit:
    """Views of a parameter, all of them made of one reading."""

    source: ParameterSource
    views: tuple[View, ...]

    @property
    def outputs(self) -> Sequence[Output]:
        return tuple(view.output for view in self.views)

    @property
    def position(self) -> tuple[str, int]:
        return self.source.position

    def jobs(self) -> Iterator[Job]:
        stored, written = self.source.nbytes, sum(output.nbytes for output in self.outputs)
        yield Job(stored, stored + 3 * written, self._write)

    def _write(self, write: Write) -> None:
        values = self.source.read()
        for view in self.views:
            write(view.output.name, 0, tensor_bytes(view.change(values.to(view.output.dtype))))


def fold_views(graph: ir.Graph, units: dict[str, Unit], lazy: Callable[[Unit, str], ir.LazyTensor]) -> None:
    """Replaces nodes of `graph` that transpose, reshape or cut a weight of `units` by weights that are written so.

    lazy: makes the tensor of a unit's output of that name.
    """
    for node in list(graph):
        value = node.inputs[0] if node.inputs else None
        unit = units.get(value.name or "") if value is not None and value.is_initializer() else None
        if not isinstance(unit, DenseUnit | ViewsUnit) or node.outputs[0].is_graph_output():
            continue
        made = _fold(node, unit)
        if made is None:
            continue
        (output,) = made.outputs
        if output.name not in graph.initializers:
            units[output.name] = made
            graph.register_initializer(
                ir.Value(
                    name=output.name,
                    shape=ir.Shape(output.shape),
                    type=ir.TensorType(output.ir_type),
                    const_value=lazy(made, output.name),
                )
            )
        ir.convenience.replace_all_uses_with(node.outputs[0], graph.initializers[output.name])
        graph.remove(node, safe=True)
    _join(graph, units)


def _fold(node: ir.Node, unit: DenseUnit | ViewsUnit) -> DenseUnit | ViewsUnit | None:
    """The unit of what `node` makes of the weight of `unit`; None where it is no view of it."""
    change = _change(node)
    if change is None or (isinstance(unit, DenseUnit) and (unit.transposed or unit.change is not None)):
        return None
    (before,) = unit.outputs
    if isinstance(unit, DenseUnit) and node.op_type == "Transpose" and len(before.shape) == 2:
        # The commonest view: it is written in parts, whatever its size.
        output = Output(f"{before.name}.T", before.dtype, before.shape[::-1])
        return DenseUnit(unit.source, output, transposed=True)
    shape = tuple(change(torch.empty(before.shape, device="meta")).shape)
    output = Output(f"{before.name}.{node.outputs[0].name}", before.dtype, shape)
    earlier = unit.views[0].change if isinstance(unit, ViewsUnit) else None
    return ViewsUnit(unit.source, (View(output, change if earlier is None else _composed(earlier, change)),))


def _composed(first: _Change, second: _Change) -> _Change:
    return lambda values: second(first(values))


def _change(node: ir.Node) -> _Change | None:
    """What a node computes of its first input, if that is a view and the others are constants."""
    constants = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:]]
    if node.domain != "" or None in constants:
        return None
    numbers = [[int(number) for number in tensor.numpy().reshape(-1)] for tensor in constants if tensor is not None]
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", None)
        return lambda values: values.permute(*(order or range(values.ndim)[::-1]))
    if node.op_type == "Reshape" and 0 not in numbers[0]:
        return lambda values: values.reshape(numbers[0])
    if node.op_type == "Slice":
        return lambda values: values[_cut(values.ndim, *numbers)]
    return None


def _cut(
    dimensions: int, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> tuple[slice, ...]:
    """The index that ONNX's Slice stands for; steps are positive."""
    index = [slice(None)] * dimensions
    for number, axis in enumerate(axes if axes is not None else range(len(starts))):
        index[axis] = slice(starts[number], ends[number], steps[number] if steps is not None else 1)
    return tuple(index)


def _join(graph: ir.Graph, units: dict[str, Unit]) -> None:
    """Makes one unit of the used views of each parameter, so that it is read once."""
    used: dict[int, list[ViewsUnit]] = {}
    for name, unit in units.items():
        if isinstance(unit, ViewsUnit) and graph.initializers[name].uses():
            used.setdefault(id(unit.source), []).append(unit)
    for views in used.values():
        joined = ViewsUnit(views[0].source, tuple(view for unit in views for view in unit.views))
        units |= dict.fromkeys((output.name for output in joined.outputs), joined)
