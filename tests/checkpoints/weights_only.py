"""A stand-in for the trace, which takes seconds and does not matter to how weights are written."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from onnx_moe.export.checkpoint.graph import PendingModel
from onnx_moe.export.checkpoint.sources import ParameterSource
from onnx_moe.export.checkpoint.units import DenseUnit, ExpertsUnit, Output, Unit, expert_outputs, quantized_reader
from onnx_moe.export.experts import Quantization
from onnx_moe.export.layers import Projection


def graph_of_weights(
    _model: Any, sources: dict[str, ParameterSource], quantization: Quantization, _options: Any
) -> PendingModel:
    """A model that is nothing but the initializers of all weights."""
    units: dict[str, Unit] = {}
    for name, source in sources.items():
        if len(source.shape) == 3:
            outputs = expert_outputs(name, *source.shape, quantization, 1)
            projection = Projection(torch.empty(source.shape, device="meta"))
            read = quantized_reader([source], projection, False, quantization, name)
            unit = ExpertsUnit(outputs, source.position, source.shape[0], source.nbytes // source.shape[0], read)
            units |= dict.fromkeys((output.name for output in outputs.values()), unit)
        else:
            units[name] = DenseUnit(source, Output(name, torch.float32, source.shape))
    initializers = [
        ir.Value(name=output.name, shape=ir.Shape(output.shape), type=ir.TensorType(output.ir_type))
        for unit in {id(unit): unit for unit in units.values()}.values()
        for output in unit.outputs
    ]
    graph = ir.Graph([], [], nodes=[], initializers=initializers, opset_imports={"": 21})
    return PendingModel(ir.Model(graph, ir_version=10), (), units)
