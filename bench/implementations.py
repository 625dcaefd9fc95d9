"""What is measured: the plugin's levels and their peers, all on the same random codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

import onnx_moe
from bench.shapes import Call, Shape
from onnx_moe.demo.qmoe import qmoe_session
from onnx_moe.formats import get_format
from onnx_moe.layout import CODE_BYTES, SCALES, interleave
from onnx_moe.quantization import QuantizedWeights


@dataclass(frozen=True)
class Implementation:
    """A name for the table, how a call becomes its inputs (not timed), what runs them, and the bytes of an expert."""

    name: str
    feed: Callable[[Call], Any]
    run: Callable[[Any], object]
    expert_bytes: float


@dataclass(frozen=True)
class PluginKind:
    """Which of the plugin's ways to compute a block."""

    level: int
    layout: str = "rows"
    device: str = "cpu"
    fused: bool = False


def weights_file(format: str, layout: str = "rows") -> str:
    """Name of the file that holds the plugin's weights."""
    return f"plugin-{format}-{layout}.data"


def is_ours(name: str) -> bool:
    """Whether an implementation of this name is the plugin rather than a peer."""
    return name.startswith(("mxfp4", "nvfp4"))


class Unsupported(Exception):
    """The peer cannot do this shape; says why."""


def random_weights(shape: Shape, format: str, seed: int = 0) -> tuple[QuantizedWeights, QuantizedWeights]:
    """Codes and scales of both projections, of magnitudes that keep activations near 1."""
    random = np.random.default_rng(seed)
    block = get_format(format).resolve_block_size(0)

    def projection(rows: int, columns: int) -> QuantizedWeights:
        codes = random.integers(0, 256, (shape.num_experts, rows, columns // 2), np.uint8)
        low, high = {"mxfp4": (118, 122), "nvfp4": (0x08, 0x18)}[format]
        scales = random.integers(low, high, (shape.num_experts, rows, columns // block), np.uint8)
        return QuantizedWeights(codes, scales, None, format, block)

    gate_up = projection(2 * shape.intermediate_size, shape.hidden_size)
    return gate_up, projection(shape.hidden_size, shape.intermediate_size)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of every session: its threads stop spinning when a run ends, or they would take the cores of the next."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def plugin(
    shape: Shape, weights: tuple[QuantizedWeights, QuantizedWeights], kind: PluginKind, threads: int, folder: Path
) -> Implementation:
    """Both projections' nodes, or one fused node with a router; all levels of a format and layout share one file of
    weights."""
    gate_up, down = weights
    format = gate_up.format
    arrays = {"w1": gate_up.weights, "s1": gate_up.scales, "w2": down.weights, "s2": down.scales}
    if kind.layout == "interleaved":
        arrays = {name: interleave(array, CODE_BYTES if name[0] == "w" else SCALES) for name, array in arrays.items()}
    common = {"domain": "onnx_moe", "format": format, "accuracy_level": kind.level, "weight_layout": kind.layout}

    tensors = {"x": (TensorProto.FLOAT, shape.hidden_size)}
    if kind.fused:
        nodes = _fused_nodes(shape, common)
    else:
        nodes = _projection_nodes(common)
        tensors |= {"ids": (TensorProto.INT32, shape.top_k), "weights": (TensorProto.FLOAT, shape.top_k)}
    path = folder / f"plugin-{format}-{kind.layout}-{kind.level}{'-fused' if kind.fused else ''}.onnx"
    constants = {name: (TensorProto.UINT8, array) for name, array in arrays.items()}
    _save(path, nodes, tensors, constants, shape.hidden_size, weights_file=weights_file(format, kind.layout))
    options = session_options(threads)
    onnx_moe.register(options)
    options.add_session_config_entry("onnx_moe.device", kind.device)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def feed(call: Call) -> dict[str, NDArray[Any]]:
        arrays = {"x": call.x, "ids": call.expert_ids, "weights": _equal_weights(call, shape)}
        return {name: arrays[name] for name in tensors}

    nbytes = (gate_up.nbytes + down.nbytes) / shape.num_experts
    name = format if kind.layout == "rows" else f"{format} {kind.layout}"
    if kind.fused:
        name += " fused"
    if kind.device != "cpu":
        name += f" on {kind.device}"
    return Implementation(f"{name}, level {kind.level}", feed, partial(session.run, None), nbytes)


def _projection_nodes(common: Mapping[str, Any]) -> list[onnx.NodeProto]:
    def node(inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node("MoEExpertGemmFP4", inputs, [output], **common, **attributes)

    return [
        node(["x", "ids", "w1", "s1"], "h", activation="silu", gated=1),
        node(["h", "ids", "w2", "s2", "", "", "weights"], "y"),
    ]


def _fused_nodes(shape: Shape, common: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """A block whose router chooses a call's experts and weighs them equally: its gate picks the keys out of the token,
    and the sigmoid of a key and 30 is 1."""
    bias = np.full(shape.num_experts, 30, np.float32)
    gate = np.eye(shape.num_experts, shape.hidden_size, dtype=np.float32)
    router = {"top_k": shape.top_k, "scoring": "sigmoid_after_topk", "normalize": 1}
    inputs = ["x", "gate", "bias", "", "w1", "s1", "", "", "w2", "s2"]
    constants = {"gate": gate, "bias": bias}
    return [
        *(
            helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
            for name, array in constants.items()
        ),
        helper.make_node("MoEBlockFP4", inputs, ["y"], **router, **common, activation="silu", gated=1),
    ]


def qmoe_fp4(
    shape: Shape, weights: tuple[QuantizedWeights, QuantizedWeights], threads: int, folder: Path
) -> Implementation:
    """ONNX Runtime's QMoE on the same codes: float32-accurate."""
    gate_up, down = weights
    folder = folder / f"qmoe-{gate_up.format}"
    folder.mkdir(exist_ok=True)
    session = qmoe_session(gate_up, down, shape.top_k, folder, session_options(threads))
    nbytes = (gate_up.nbytes + down.nbytes) / shape.num_experts
    return Implementation(f"QMoE {gate_up.format}", partial(_qmoe_feed, shape), partial(session.run, None), nbytes)


def qmoe_int4(shape: Shape, block: int, level: int, threads: int, folder: Path) -> Implementation:
    """ONNX Runtime's QMoE with int4 weights and a float scale for every `block`."""
    if shape.hidden_size % block or shape.intermediate_size % block:
        raise Unsupported(f"{shape.hidden_size} × {shape.intermediate_size} is no multiple of blocks of {block}")
    random = np.random.default_rng(0)

    def arrays(rows: int, columns: int, name: str) -> dict[str, tuple[int, NDArray[np.generic]]]:
        codes = random.integers(0, 256, (shape.num_experts, rows, columns // 2), np.uint8)
        scales = random.uniform(0.002, 0.01, (shape.num_experts, rows, columns // block)).astype(np.float32)
        return {f"w{name}": (TensorProto.UINT8, codes), f"s{name}": (TensorProto.FLOAT, scales)}

    constants = arrays(2 * shape.intermediate_size, shape.hidden_size, "1") | arrays(
        shape.hidden_size, shape.intermediate_size, "2"
    )
    node = helper.make_node(
        "QMoE",
        ["x", "keys", "w1", "s1", "", "w2", "s2", *[""] * 7, "weights"],
        ["y"],
        domain="com.microsoft",
        k=shape.top_k,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=0,
        expert_weight_bits=4,
        block_size=block,
        accuracy_level=level,
    )
    inputs = {
        "x": (TensorProto.FLOAT, shape.hidden_size),
        "keys": (TensorProto.FLOAT, shape.num_experts),
        "weights": (TensorProto.FLOAT, shape.num_experts),
    }
    path = folder / f"qmoe-int4-{block}-{level}.onnx"
    _save(path, [node], inputs, constants, shape.hidden_size, weights_file=f"qmoe-int4-{block}.data")
    session = onnxruntime.InferenceSession(path, session_options(threads), providers=["CPUExecutionProvider"])
    nbytes = sum(array.nbytes for _, array in constants.values()) / shape.num_experts
    name = f"QMoE int4/{block}, level {level}"
    return Implementation(name, partial(_qmoe_feed, shape), partial(session.run, None), nbytes)


def torch_reference(shape: Shape, dtype: torch.dtype, threads: int) -> Implementation:
    """The block in plain Torch: what a model does before it is exported."""
    from onnx_moe.nn import Experts

    with torch.device("meta"):
        experts = Experts(shape.hidden_size, shape.intermediate_size, shape.num_experts).to(dtype)
    experts = experts.to_empty(device="cpu").requires_grad_(False)
    for parameter in experts.parameters():
        parameter.normal_(0.0, 0.02)

    def feed(call: Call) -> tuple[torch.Tensor, ...]:
        ids = torch.from_numpy(call.expert_ids.astype(np.int64))
        return torch.from_numpy(call.x).to(dtype), ids, torch.full(ids.shape, 1 / shape.top_k)

    def run(inputs: tuple[torch.Tensor, ...]) -> object:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return experts(*inputs)

    nbytes = shape.weights_per_expert * dtype.itemsize
    return Implementation(f"Torch {str(dtype).removeprefix('torch.')}", feed, run, nbytes)


def _equal_weights(call: Call, shape: Shape) -> NDArray[np.float32]:
    return np.full(call.expert_ids.shape, 1 / shape.top_k, np.float32)


def _qmoe_feed(shape: Shape, call: Call) -> dict[str, NDArray[np.float32]]:
    weights = np.zeros(call.keys.shape, np.float32)
    np.put_along_axis(weights, call.expert_ids.astype(np.int64), np.float32(1 / shape.top_k), axis=1)
    return {"x": call.x, "keys": call.keys, "weights": weights}


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, int]],
    constants: Mapping[str, tuple[int, NDArray[np.generic]]],
    output_size: int,
    weights_file: str,
) -> None:
    """A model whose constants lie in `weights_file`, which is written once."""
    initializers, offset, data = [], 0, path.parent / weights_file
    fresh = not data.exists()
    with data.open("ab") as file:
        for name, (element_type, array) in constants.items():
            tensor = onnx.TensorProto(name=name, data_type=element_type, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", weights_file), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            if fresh:
                file.write(array.tobytes())
                file.write(bytes(-array.nbytes % 65536))
            offset += array.nbytes + -array.nbytes % 65536
            initializers.append(tensor)
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info(name, kind, ["tokens", size]) for name, (kind, size) in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", output_size])],
        initializers,
    )
    versions = {"": 21, "onnx_moe": 1, "com.microsoft": 1}
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
