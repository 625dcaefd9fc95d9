"""Putting FP4 experts and MoERouter into a module for the length of an export."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import onnx_moe.reference  # noqa: F401 - registers the operators
from onnx_moe.errors import ExportError, OnnxMoeError
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.layers import Projection
from onnx_moe.export.patching import replace_data, replace_forward, replace_parameters
from onnx_moe.export.routers import RouterMatch, get_tensor
from onnx_moe.formats import get_format
from onnx_moe.layout import CODE_BYTES, SCALES, interleave
from onnx_moe.quantization import QuantizedWeights, dequantize, quantize

Rows = TypeVar("Rows", torch.Tensor, NDArray[Any])

#: Makes the FP4 buffers of a layer's experts.
MakeBuffers = Callable[[MoELayer, "Quantization"], dict[str, torch.Tensor]]


class FP4Parts(Protocol):
    """Experts of a layer in FP4: parts along the experts, the routed ones, then the shared ones."""

    up: list[QuantizedWeights]
    down: list[QuantizedWeights]


@dataclass(frozen=True)
class Quantization:
    """How experts become FP4: arguments of `quantize`, and the nodes' accuracy_level and weight_layout."""

    format: str
    block_size: int
    scale: str
    accuracy_level: int
    weight_layout: str = "rows"

    def attributes(self) -> dict[str, Any]:
        """Attributes of MoEExpertGemmFP4 that say the same."""
        return {
            "format": self.format,
            "block_size": self.block_size,
            "accuracy_level": self.accuracy_level,
            "weight_layout": self.weight_layout,
        }

    def check_columns(self, matrix: torch.Tensor, what: str) -> None:
        """ExportError unless blocks divide the columns of `matrix` [..., N, K]."""
        block = get_format(self.format).resolve_block_size(self.block_size)
        if matrix.shape[-1] % block:
            raise ExportError(
                f"{what} has K={matrix.shape[-1]}, which is no multiple of {self.format}'s block of {block}: use a "
                "format with smaller blocks (nvfp4: 16), or a model whose sizes are multiples."
            )

    def apply(self, matrix: torch.Tensor, what: str) -> QuantizedWeights:
        self.check_columns(matrix, what)
        try:
            return quantize(matrix, self.format, block_size=self.block_size, scale=self.scale)
        except OnnxMoeError as error:
            raise type(error)(f"{what}: {error}") from error


def routed_and_shared(layer: MoELayer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Parts, along the experts, of the matrices [E, N, K] of both products: the routed experts', then the shared."""
    up, down = [layer.experts.up.matrix], [layer.experts.down.matrix]
    if layer.shared is not None:
        gates, ups, downs = _split_shared(layer)
        up.append(torch.cat([gates, ups], dim=1))
        down.append(downs)
    return up, down


def _split_shared(layer: MoELayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The shared experts' gate and up [s, I, H] and down [s, H, I]."""
    shared = layer.shared
    assert shared is not None
    gate, up, down = shared.gate.detach(), shared.up.detach(), shared.down.detach()
    hidden_size = gate.shape[1]
    return (
        gate.view(shared.count, -1, hidden_size),
        up.view(shared.count, -1, hidden_size),
        down.view(hidden_size, shared.count, -1).transpose(0, 1),
    )


def lay_out(buffers: dict[str, torch.Tensor], quantization: Quantization) -> dict[str, torch.Tensor]:
    """Weights and scales, row by row, in the weight_layout that is asked for."""
    if quantization.weight_layout != "interleaved":
        return buffers
    return {
        "weights": interleave(buffers["weights"], CODE_BYTES),
        "scales": interleave(buffers["scales"], SCALES),
    }


def quantize_parts(quantization: Quantization, parts: list[torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    """Buffers weights, scales and global_scale of the experts in `parts`."""
    return _fp4_buffers(quantization, [quantization.apply(part, what) for part in parts])


def _fp4_buffers(quantization: Quantization, quantized: list[QuantizedWeights]) -> dict[str, torch.Tensor]:
    """Buffers weights, scales and global_scale of all experts."""
    buffers = {
        "weights": _joined([part.weights for part in quantized]),
        "scales": _joined([part.scales for part in quantized]),
    }
    buffers = lay_out(buffers, quantization)
    if quantized[0].global_scale is not None:
        buffers["global_scale"] = _joined([part.global_scale for part in quantized if part.global_scale is not None])
    return buffers


def _joined(parts: list[NDArray[Any]]) -> torch.Tensor:
    """One part after the other; a single one is not copied."""
    return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _projection_tensors(layer: MoELayer) -> list[torch.Tensor]:
    """The tensors that FP4 buffers stand for."""
    projections = (layer.experts.up, layer.experts.down)
    tensors = (tensor for projection in projections for tensor in (*projection.parameters, projection.bias))
    return [tensor for tensor in tensors if tensor is not None]


def _bias(projection: Projection) -> torch.Tensor | None:
    return None if projection.bias is None else projection.bias.detach().float()


def gate_first(rows: Rows) -> Rows:
    """Codes or scales [E, N, ...] or bias [E, N] with the even rows, the gate's, before the odd ones."""
    order = [*range(0, rows.shape[1], 2), *range(1, rows.shape[1], 2)]
    return rows[:, order]


def _activation(layer: MoELayer, quantization: Quantization) -> dict[str, Any]:
    """Attributes of the first product for the rows as `experts_buffers` orders them."""
    activation = layer.experts.activation
    if activation.get("gate_layout") == quantization.weight_layout == "interleaved":
        return {**activation, "gate_layout": "concatenated"}
    return activation


def moves_gate(layer: MoELayer, quantization: Quantization) -> bool:
    """Whether the gate's rows, interleaved with the others in the module, are written before them."""
    return bool(layer.experts.activation.get("gate_layout") != _activation(layer, quantization).get("gate_layout"))


def _quantized_parts(layer: MoELayer, quantization: Quantization) -> dict[str, list[QuantizedWeights]]:
    up, down = routed_and_shared(layer)
    where = layer.path or "the module"
    return {
        name: [quantization.apply(part, f"{where}: {name} projection") for part in parts]
        for name, parts in (("up", up), ("down", down))
    }


def experts_buffers(
    layer: MoELayer, quantization: Quantization, ready: FP4Parts | None = None
) -> dict[str, torch.Tensor]:
    """The FP4 buffers of a layer's experts: up_weights, up_scales, up_global_scale, up_bias, and the same of down.

    ready: the experts in FP4, where they are not to be quantised by `quantization`'s rule.
    """
    parts = _quantized_parts(layer, quantization) if ready is None else {"up": ready.up, "down": ready.down}
    buffers = {}
    for name, projection in (("up", layer.experts.up), ("down", layer.experts.down)):
        quantized, bias = parts[name], _bias(projection)
        if name == "up" and moves_gate(layer, quantization):
            quantized = [
                replace(part, weights=gate_first(part.weights), scales=gate_first(part.scales)) for part in quantized
            ]
            bias = None if bias is None else gate_first(bias)
        for key, value in _fp4_buffers(quantization, quantized).items():
            buffers[f"{name}_{key}"] = value
        if bias is not None:
            buffers[f"{name}_bias"] = bias
    return buffers


def _run_experts(layer: MoELayer, quantization: Quantization) -> Callable[..., torch.Tensor]:
    """forward(hidden_states [T, H], expert_ids [T, k], expert_weights [T, k]) on the FP4 buffers."""
    module, experts = layer.experts_module, layer.experts
    gemm = torch.ops.onnx_moe.expert_gemm_fp4
    options = quantization.attributes()
    activation = _activation(layer, quantization)

    def product(
        name: str, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, **more: Any
    ) -> torch.Tensor:
        buffers = [getattr(module, f"{name}_{key}", None) for key in ("weights", "scales", "global_scale", "bias")]
        return gemm(x, ids, *buffers, weights, **options, **more)  # type: ignore[no-any-return]

    def forward(hidden_states: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor) -> torch.Tensor:
        ids = expert_ids.to(torch.int32)
        hidden = product("up", hidden_states, ids, None, **({} if experts.gate else activation))
        if experts.gate is not None:
            hidden = experts.gate(hidden)
        return product("down", hidden, ids, expert_weights.float())

    return experts.forward_with(forward)


def _run_router(layer: MoELayer, match: RouterMatch) -> Callable[..., tuple[torch.Tensor, ...]]:
    num_shared = 0 if layer.shared is None else layer.shared.count
    module: Any = layer.router_module
    own_forward = module.forward
    signature = inspect.signature(own_forward)
    shared = {"num_shared_experts": num_shared} if num_shared else {}

    def forward(hidden_states: torch.Tensor, *arguments: Any, **keywords: Any) -> tuple[torch.Tensor, ...]:
        rows = hidden_states if match.keeps_dimensions else hidden_states.reshape(-1, hidden_states.shape[-1])
        # By name and at run time, so that the trace sees the module's own parameters.
        weight, bias, correction = (get_tensor(module, name) for name in match.tensors)
        if match.correction_argument is not None:
            correction = signature.bind(hidden_states, *arguments, **keywords).arguments[match.correction_argument]
        correction = None if correction is None else correction.reshape(-1).float()
        ids, weights, logits = torch.ops.onnx_moe.router(
            rows, weight, bias, correction, None, **match.attributes, **shared
        )
        values = {"ids": ids, "weights": weights, "logits": logits}
        if "own" not in match.output:
            return tuple(values[name] for name in match.output)
        # What nobody reads of the module's own computation leaves the graph as dead code.
        own = own_forward(hidden_states, *arguments, **keywords)
        return tuple(values.get(name, result) for name, result in zip(match.output, own, strict=True))

    return forward


@contextmanager
def fp4_experts(
    layers: list[MoELayer],
    quantization: Quantization,
    advance: Callable[[MoELayer], None],
    make_buffers: MakeBuffers = experts_buffers,
) -> Iterator[None]:
    """Gives each layer FP4 experts and, where its family is known, MoERouter, inside the block."""
    with ExitStack() as stack:
        for layer in layers:
            buffers = make_buffers(layer, quantization)
            stack.enter_context(replace_parameters(layer.experts_module, buffers, _projection_tensors(layer)))
            stack.enter_context(replace_forward(layer.experts_module, _run_experts(layer, quantization)))
            if isinstance(layer.router, RouterMatch) and layer.router_module is not None:
                stack.enter_context(replace_forward(layer.router_module, _run_router(layer, layer.router)))
            if layer.shared_module is not None:
                # The block adds what the shared module returns; the routed experts' product holds it already.
                stack.enter_context(replace_forward(layer.shared_module, lambda *_arguments, **_keywords: 0))
            advance(layer)
        yield


def _check_own_tensors(layer: MoELayer) -> None:
    """ExportError if an adapter made tensors up: giving them values would not change the module."""
    own = {id(tensor) for tensor in (*layer.experts_module.parameters(), *layer.experts_module.buffers())}
    for projection in (layer.experts.up, layer.experts.down):
        made_up = [parameter for parameter in projection.parameters if id(parameter) not in own]
        if made_up:
            raise ExportError(
                f"{layer.path or 'the module'}: its adapter describes a tensor {list(made_up[0].shape)} that "
                "is no parameter of the module, so that decoded FP4 values cannot be put into it: put the values of "
                "dequantize(quantize(...)) into your module, or hold the parameters stacked."
            )


def decoded_values(layer: MoELayer, decoded: list[list[NDArray[np.float32]]]) -> dict[torch.Tensor, torch.Tensor]:
    """What each of the layer's parameters becomes when its parts `decoded`, of up and of down, stand in for it."""
    _check_own_tensors(layer)
    values: dict[torch.Tensor, torch.Tensor] = {}
    for projection, parts in zip((layer.experts.up, layer.experts.down), decoded, strict=True):
        values |= projection.values(torch.from_numpy(parts[0]).to(projection.matrix.dtype))
    if layer.shared is not None:
        up, down = (torch.from_numpy(parts[1]).to(layer.shared.gate.dtype) for parts in decoded)
        gates, ups = up.chunk(2, dim=1)
        hidden_size = gates.shape[-1]
        values[layer.shared.gate] = gates.reshape(-1, hidden_size)
        values[layer.shared.up] = ups.reshape(-1, hidden_size)
        values[layer.shared.down] = down.transpose(0, 1).reshape(hidden_size, -1).contiguous()
    return values


@contextmanager
def decoded_experts(
    layers: list[MoELayer], quantization: Quantization, calibrated: Mapping[str, FP4Parts]
) -> Iterator[None]:
    """Gives each layer's parameters the values that their FP4 codes stand for, inside the block."""
    values: dict[torch.Tensor, torch.Tensor] = {}
    for layer in layers:
        _check_own_tensors(layer)
        ready = calibrated.get(layer.path)
        parts = (ready.up, ready.down) if ready is not None else _quantized_parts(layer, quantization).values()
        values.update(decoded_values(layer, [[dequantize(part) for part in some] for some in parts]))
    with replace_data(values):
        yield
