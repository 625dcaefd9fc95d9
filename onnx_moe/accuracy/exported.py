"""An exported model under test: its MoE layers, what passes through them in a run, and the weights that they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from onnx_moe.errors import InvalidModelError
from onnx_moe.generation import DecoderSession
from onnx_moe.layout import CODE_BYTES, SCALES, deinterleave
from onnx_moe.operators import BLOCK, DOMAIN, EXPERT_GEMM, ExpertGemmAttributes, expert_gemm_attributes
from onnx_moe.reference.decode import decode_weights
from onnx_moe.reference.expert_gemm import row_scales

#: Makes a session of a model's bytes and options.
SessionMaker = Callable[[bytes, onnxruntime.SessionOptions], onnxruntime.InferenceSession]
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class LayerRun:
    """What one layer's experts got and gave: x [T, H], ids [T, k], weights [T, k], y [T, H], float32.

    stream [T, H]: the hidden states behind the layer, y added to what came past it.
    """

    x: NDArray[np.float32]
    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    y: NDArray[np.float32]
    stream: NDArray[np.float32]


@dataclass(frozen=True)
class ExportedLayer:
    """The two products of one MoE layer."""

    name: str
    up: ir.Node
    down: ir.Node

    def attributes(self, node: ir.Node) -> ExpertGemmAttributes:
        return expert_gemm_attributes({name: attribute.value for name, attribute in node.attributes.items()})

    def matrices(self, node: ir.Node) -> torch.Tensor:
        """The float32 weights [E, N, K] that the node's codes stand for."""
        weights, scales = (_constant(node, index) for index in (2, 3))
        options = self.attributes(node)
        if options.weight_layout == "interleaved":
            weights, scales = deinterleave(weights, CODE_BYTES), deinterleave(scales, SCALES)
        matrices = decode_weights(weights, scales, options.format, options.block_size)
        if len(node.inputs) > 4 and node.inputs[4] is not None:
            factors = _constant(node, 4)
            rows = torch.stack([row_scales(factor, options, matrices.shape[1]) for factor in factors])
            matrices = matrices * rows[..., None]
        return matrices

    def bias(self, node: ir.Node) -> torch.Tensor | None:
        return _constant(node, 5) if len(node.inputs) > 5 and node.inputs[5] is not None else None


def _constant(node: ir.Node, index: int) -> torch.Tensor:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise InvalidModelError(f"{node.name}: its input {index} is no initializer: measure the model as exported.")
    return torch.from_numpy(np.array(value.const_value.numpy()))


class ExportedModel:
    """A decoder exported by `onnx_moe.export`, with what its MoE layers get and give among its outputs."""

    def __init__(self, path: Path, make_session: SessionMaker) -> None:
        model = ir.load(path)
        self.metadata = dict(model.metadata_props)
        self.layers = _find_layers(model, path)
        self._probes = [name for layer in self.layers for name in _probe(model, layer)]
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(_DATA_FOLDER, str(path.parent.resolve()))
        session = make_session(ir.to_proto(model).SerializeToString(), options)
        self._decoder = DecoderSession(session)
        self._session = session

    def run(self, input_ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], list[LayerRun]]:
        """Logits [B, S, V] of token ids [B, S], and what each layer did."""
        feeds: dict[str, Any] = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        feeds.update(self._decoder.read(self._decoder.empty_cache(len(input_ids))))
        logits, *probes = self._session.run(["logits", *self._probes], feeds)
        runs = []
        for x, ids, weights, y, stream in (probes[start : start + 5] for start in range(0, len(probes), 5)):
            rows, slots = y.reshape(-1, y.shape[-1]).shape[0], ids.shape[-1]
            runs.append(
                LayerRun(
                    x.reshape(rows, -1).astype(np.float32),
                    ids.reshape(rows, slots).astype(np.int64),
                    weights.reshape(rows, slots).astype(np.float32),
                    y.reshape(rows, -1).astype(np.float32),
                    stream.reshape(rows, -1).astype(np.float32),
                )
            )
        return logits.astype(np.float32), runs


def _find_layers(model: ir.Model, path: Path) -> list[ExportedLayer]:
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    if any(node.op_type == BLOCK for node in nodes):
        raise InvalidModelError(f"{path} holds fused blocks, whose routing cannot be seen: measure it before fusing.")
    products = [node for node in nodes if node.op_type == EXPERT_GEMM]
    if not products or len(products) % 2:
        raise InvalidModelError(f"{path} holds no MoE layers of two products each: give a model that export wrote.")
    pairs = zip(products[0::2], products[1::2], strict=True)
    return [ExportedLayer((up.name or "?").removesuffix(".up"), up, down) for up, down in pairs]


_NORMS = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization")


def _probe(model: ir.Model, layer: ExportedLayer) -> list[str]:
    """Makes x, ids, weights, y and stream of the layer outputs of the model; their names."""
    y = layer.down.outputs[0]
    values = (layer.up.inputs[0], layer.up.inputs[1], layer.down.inputs[6], y, _stream(y))
    kinds = (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.FLOAT)
    names = []
    for value, kind in zip(values, kinds, strict=True):
        assert value is not None
        value.type = value.type or ir.TensorType(kind)
        if value not in model.graph.outputs:
            model.graph.outputs.append(value)
        names.append(str(value.name))
    return names


def _stream(y: ir.Value) -> ir.Value:
    """The hidden states that `y` becomes part of: the first value behind it that more than one node reads, or that is
    normalised (behind the last layer)."""
    value = y
    while len(value.uses()) == 1:
        node = next(iter(value.uses())).node
        if node.op_type in _NORMS:
            break
        value = node.outputs[0]
    return value
