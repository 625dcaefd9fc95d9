"""A decoder's graph from its configuration: traced without weights, each of which is a unit still to be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter.onnx_fusions
import torch
from torch._subclasses.fake_tensor import FakeTensor

from onnx_moe.errors import CheckpointError, OnnxMoeError
from onnx_moe.export.checkpoint.dense_units import quantize_dense_units
from onnx_moe.export.checkpoint.expert_units import ExpertWeights
from onnx_moe.export.checkpoint.skeleton import make_fake, without_experts
from onnx_moe.export.checkpoint.sources import ParameterSource
from onnx_moe.export.checkpoint.tied import share_tied_heads
from onnx_moe.export.checkpoint.units import DenseUnit, Output, Unit
from onnx_moe.export.checkpoint.views import fold_views
from onnx_moe.export.discovery import find_layers
from onnx_moe.export.experts import Quantization, fp4_experts
from onnx_moe.export.exported_layers import ExportedLayer, check_routers, describe_layer
from onnx_moe.export.finish import tidy
from onnx_moe.export.target import Target, evaluating, make_target, trace
from onnx_moe.export.tracing import uncounted_experts
from onnx_moe.next_gates import add_next_gates

#: What a Decoder calls the model that it wraps.
_WRAPPER = "model."
#: Elements up to which a constant may be folded, as in onnxscript: larger weights stay as they are.
_FOLDED_ELEMENTS = 1024


@dataclass
class PendingModel:
    """A model whose initializers in `units`, by name, have no values yet."""

    model: ir.Model
    layers: tuple[ExportedLayer, ...]
    units: dict[str, Unit] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphOptions:
    """How the graph is made: arguments of `export` of the same names."""

    fold_shared_experts: bool
    router_logits: bool
    opset: int
    dense: str


def trace_model(
    model: Any, sources: dict[str, ParameterSource], quantization: Quantization, options: GraphOptions
) -> PendingModel:
    """The graph of `model`, which has parameters on the meta device, as a decoder; the units of all its weights."""
    _load_buffers(model, sources)
    mode = make_fake(model)
    with without_experts(model), uncounted_experts(model), mode:
        target = _decoder_target(model)
    with evaluating(model):

        def run() -> None:
            with mode:
                target.module(*target.example)

        layers = find_layers(target.module, run, options.fold_shared_experts, target.must_reach_every_layer)
        if options.router_logits:
            check_routers(layers)
        experts = ExpertWeights(target.module, sources, _WRAPPER, mode)
        with fp4_experts(layers, quantization, lambda _layer: None, experts.make_buffers), mode:
            graph = trace(target, target.example, options.opset, optimize=False)
        described = tuple(describe_layer(layer) for layer in layers)
    pending = PendingModel(graph, described, dict(experts.units))
    _attach(pending, sources)
    _optimise(pending)
    tidy(graph, options.router_logits)
    add_next_gates(graph)
    quantize_dense_units(graph, pending.units, options.dense, quantization.accuracy_level)
    share_tied_heads(graph.graph, pending.units, _lazy)  # those that are floats still
    return pending


def _decoder_target(model: Any) -> Target:
    try:
        return make_target(model, None)
    except OnnxMoeError:
        raise
    except Exception as error:  # whatever a model raises that wants values (JetMoE), or other outputs (Llama 4)
        raise CheckpointError(
            f"{type(model).__name__} does not run without its weights ({type(error).__name__}): load the model and "
            "export it with onnx_moe.export."
        ) from error


def _load_buffers(model: Any, sources: dict[str, ParameterSource]) -> None:
    """Gives persistent buffers, such as routers' correction biases, the checkpoint's values."""
    for name, buffer in model.named_buffers():
        if name in sources:
            buffer.copy_(sources[name].read())


def _attach(pending: PendingModel, sources: dict[str, ParameterSource]) -> None:
    """Gives each initializer that a fake tensor stands for the unit that will make it."""
    for name, value in pending.model.graph.initializers.items():
        raw = getattr(value.const_value, "raw", None)
        if not isinstance(raw, FakeTensor):
            continue
        if name not in pending.units:
            source = sources.get(name.removeprefix(_WRAPPER))
            if source is None:
                raise CheckpointError(f"{name} has no weights in the checkpoint: this architecture is not supported.")
            pending.units[name] = DenseUnit(source, Output(name, raw.dtype, tuple(raw.shape)))
        value.const_value = _lazy(pending.units[name], name)


def _lazy(unit: Unit, name: str) -> ir.LazyTensor:
    output = next(output for output in unit.outputs if name in output.names)
    return ir.LazyTensor(lambda: materialise(unit)[name], dtype=output.ir_type, shape=ir.Shape(output.shape), name=name)


def materialise(unit: Unit) -> dict[str, ir.TensorProtocol]:
    """The tensors of a small unit, made now."""
    buffers = {output.name: np.empty(output.nbytes, np.uint8) for output in unit.outputs}

    def write(name: str, offset: int, data: np.ndarray[Any, Any]) -> None:
        flat = data.reshape(-1).view(np.uint8)
        buffers[name][offset : offset + flat.size] = flat

    for job in unit.jobs():
        job.run(write)
    tensors: dict[str, ir.TensorProtocol] = {}
    for output in unit.outputs:
        values = torch.from_numpy(buffers[output.name]).view(output.dtype).reshape(output.shape)
        tensors |= {name: ir.tensor(values, name=name) for name in output.names}
    return tensors


def _optimise(pending: PendingModel) -> None:
    """What torch.onnx.export does to a graph with weights, but for folding the large ones: views of those are units."""
    model = pending.model
    onnxscript.optimizer.optimize_ir(model, should_fold=_fold_unless(_is_large))
    onnxscript.rewriter.onnx_fusions.fuse(model)
    fold_views(model.graph, pending.units, _lazy)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    pending.units = {name: unit for name, unit in pending.units.items() if name in model.graph.initializers}


def _fold_unless(is_large: Callable[[ir.Value], bool]) -> Callable[[ir.Node], bool | None]:
    return lambda node: False if any(value is not None and is_large(value) for value in node.inputs) else None


def _is_large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size > _FOLDED_ELEMENTS
