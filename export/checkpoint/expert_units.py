"""The experts of each layer: fake FP4 buffers for the trace, and the units that will fill them."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint.sources import ParameterSource
from onnx_moe.export.checkpoint.units import (
    DenseUnit,
    ExpertsUnit,
    Output,
    ReadExperts,
    Unit,
    expert_outputs,
    fp4_reader,
    quantized_reader,
)
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.experts import Quantization, gate_first, moves_gate, quantize_parts
from onnx_moe.export.layers import Projection, SharedExpert


def checkpoint_format(sources: dict[str, ParameterSource]) -> str | None:
    """The FP4 format in which the checkpoint holds stacked experts; None if it holds none in FP4.

    Raises CheckpointError for experts in two formats, and for FP4 experts whose codes cannot be taken as they are.
    """
    formats: dict[str, str] = {}
    for name, source in sources.items():
        if len(source.shape) == 3 and source.fp4_weights:
            found = source.fp4_format
            if found is None:
                raise _quantised_again(name)
            formats.setdefault(found, name)
    if len(formats) > 1:
        raise CheckpointError(
            f"The experts are in several FP4 formats ({', '.join(map(': '.join, formats.items()))}): a model has one; "
            "use the checkpoint in bfloat16."
        )
    return next(iter(formats), None)


def _quantised_again(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is in FP4 in a form that would have to be quantised again (of several formats, turned between rows "
        "and columns, or of all experts in one flat matrix): use the checkpoint in bfloat16."
    )


def _taken_as_it_is(sources: list[ParameterSource], projection: Projection) -> ParameterSource:
    """The only one of `sources`, whose FP4 codes are those of the projection [E, N, K]; else a CheckpointError."""
    source = sources[0]
    turned = any(weight.transposed != projection.transposed for weight in source.fp4_weights)
    if len(sources) > 1 or projection.is_flat or turned:
        raise _quantised_again(source.name)
    return source


class ExpertWeights:
    """Makes the buffers of `fp4_experts` for a model without weights, and remembers what will fill them."""

    def __init__(
        self, module: torch.nn.Module, sources: dict[str, ParameterSource], wrapper: str, mode: FakeTensorMode
    ) -> None:
        self.units: dict[str, Unit] = {}
        self._mode = mode
        self._sources: dict[int, ParameterSource] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name.removeprefix(wrapper) in sources:
                self._sources[id(parameter)] = sources[name.removeprefix(wrapper)]

    def make_buffers(self, layer: MoELayer, quantization: Quantization) -> dict[str, torch.Tensor]:
        """As `experts_buffers`, without values."""
        buffers: dict[str, torch.Tensor] = {}
        for name, projection in (("up", layer.experts.up), ("down", layer.experts.down)):
            moved = name == "up" and moves_gate(layer, quantization)
            for kind, unit in self._projection_units(layer, name, projection, quantization, moved).items():
                output = next(output for output in unit.outputs if output.name.endswith(f".{name}_{kind}"))
                self.units[output.name] = unit
                with self._mode:
                    buffers[f"{name}_{kind}"] = torch.empty(output.shape, dtype=output.dtype)
        return buffers

    def _projection_units(
        self, layer: MoELayer, name: str, projection: Projection, quantization: Quantization, moved: bool
    ) -> dict[str, Unit]:
        sources = [self._source(parameter, layer) for parameter in projection.parameters]
        routed, rows, columns = projection.matrix.shape
        prefix = f"{layer.path}.{name}"
        quantization.check_columns(projection.matrix, prefix)
        pieces = 1
        if any(source.fp4_weights for source in sources):
            source = _taken_as_it_is(sources, projection)
            pieces = source.global_scales if name == "up" else 1
            read = fp4_reader(source, moved, quantization, pieces)
        else:
            read = quantized_reader(sources, projection, moved, quantization, prefix)
        count, stored = int(routed), sum(source.nbytes for source in sources) // int(routed)
        if layer.shared is not None:
            read = self._with_shared(read, count, layer, layer.shared, name, quantization)
            count += layer.shared.count
        outputs = expert_outputs(prefix, count, int(rows), int(columns), quantization, pieces)
        unit = ExpertsUnit(outputs, sources[0].position, count, stored, read)
        units: dict[str, Unit] = dict.fromkeys(outputs, unit)
        if projection.bias is not None:
            bias = Output(f"{prefix}_bias", torch.float32, tuple(projection.bias.shape))
            units["bias"] = DenseUnit(self._source(projection.bias, layer), bias, change=gate_first if moved else None)
        return units

    def _source(self, parameter: torch.Tensor, layer: MoELayer) -> ParameterSource:
        if id(parameter) not in self._sources:
            raise CheckpointError(
                f"{layer.path}: its adapter describes tensors that are no parameters of the module, so that they "
                "cannot be found in a checkpoint: export the loaded model with onnx_moe.export instead."
            )
        return self._sources[id(parameter)]

    def _with_shared(
        self,
        read: ReadExperts,
        routed: int,
        layer: MoELayer,
        shared: SharedExpert,
        name: str,
        quantization: Quantization,
    ) -> ReadExperts:
        """Experts from `routed` on are the shared ones, quantised from their own tensors."""
        parameters = (shared.gate, shared.up) if name == "up" else (shared.down,)
        sources = [self._source(parameter, layer) for parameter in parameters]
        axis = 0 if name == "up" else 1  # along which a matrix holds one shared expert after the other

        def read_all(index: int) -> dict[str, torch.Tensor]:
            if index < routed:
                return read(index)
            matrix = torch.cat([source.read().chunk(shared.count, axis)[index - routed] for source in sources])
            what = f"{layer.path}: shared expert {index - routed}, {name} projection"
            return quantize_parts(quantization, [matrix[None]], what)

        return read_all
