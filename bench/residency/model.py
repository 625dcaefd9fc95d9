"""A model of random FP4 experts in a file, and tokens whose routing is like a real model's.

Each layer's hidden states are those of the layer before, changed by a drift that the caller gives, so that routing can
be calibrated: to normalised entropy 0.74, Gini coefficient 0.77, 64 active experts of 128, 38 % of a token's experts
again in the next one and 27 % eight tokens later, and a next gate that names 72 to 89 % of the next layer's experts,
which public traces have. With the constants below these are 0.74, 0.79, 60, 39 %, 27 % and 78 %.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.progress import track

from onnx_moe.operators import DOMAIN, VERSION

#: Standard deviation of a router's logits.
LOGITS = 1.5
#: Popularity of an expert: (offset + rank)^-exponent.
ZIPF_EXPONENT, ZIPF_OFFSET = 10, 130
#: Correlation of a token's drift with the last token's, and of a layer's hidden states with the last layer's.
TOKEN_CORRELATION, LAYER_CORRELATION = 0.3, 0.92
#: E8M0 of 2^-8: what blocks add to the hidden states is small beside them.
SCALE = 119


@dataclass(frozen=True)
class Shape:
    """Experts of a layer of a real model."""

    hidden: int
    intermediate: int
    experts: int
    top_k: int

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """Rows and bytes of a row of an expert's tensors, in the order of the block's inputs."""
        projections = (("gate_up", 2 * self.intermediate, self.hidden), ("down", self.hidden, self.intermediate))
        return {
            f"{projection}.{part}": (rows, columns // divisor)
            for projection, rows, columns in projections
            for part, divisor in (("weights", 2), ("scales", 32))
        }

    @property
    def expert_bytes(self) -> int:
        """Of an expert's codes and scales."""
        return sum(rows * row_bytes for rows, row_bytes in self.parts.values())


SHAPES = {
    "qwen3-30b-a3b": Shape(2048, 768, 128, 8),
    "glm-4.5-air": Shape(4096, 1408, 128, 8),
}


def write_model(path: Path, shape: Shape, layers: int) -> None:
    """Writes the model, and beside it its data: the routers' matrices, then layer by layer the experts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    tensors = list(_small_tensors(layers, shape, random))
    with open(path.with_suffix(".data"), "wb") as data:
        for layer in range(layers):
            gate = random.standard_normal((shape.experts, shape.hidden), np.float32) * np.float32(LOGITS)
            tensors.append(_write(data, f"{layer}.gate", gate))
        for layer in track(range(layers), description="writing experts"):
            for part, size in shape.parts.items():
                array = _random_part(part, (shape.experts, *size), random)
                tensors.append(_write(data, f"{layer}.{part}", array))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node for layer in range(layers) for node in _nodes(layer, shape, layers)],
        "stack",
        [
            value("0.in", TensorProto.FLOAT, [1, shape.hidden]),
            value("drift", TensorProto.FLOAT, [layers, shape.hidden]),
        ],
        [value(f"{layers}.in", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _small_tensors(layers: int, shape: Shape, random: np.random.Generator) -> Iterator[onnx.TensorProto]:
    for layer in range(layers):
        popularity = -ZIPF_EXPONENT * np.log(ZIPF_OFFSET + random.permutation(shape.experts))
        yield numpy_helper.from_array(popularity.astype(np.float32), f"{layer}.gate_bias")
        yield numpy_helper.from_array(np.array([layer]), f"{layer}.index")


def _random_part(part: str, size: tuple[int, ...], random: np.random.Generator) -> NDArray[np.uint8]:
    if part.endswith("scales"):
        return np.full(size, SCALE, np.uint8)
    words = random.integers(0, 1 << 64, int(np.prod(size)) // 8, np.uint64)
    return words.view(np.uint8).reshape(size)


def _write(data: BinaryIO, name: str, array: NDArray[Any]) -> onnx.TensorProto:
    data.seek(-(-data.tell() // mmap.PAGESIZE) * mmap.PAGESIZE)
    data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=data_type, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, entry in (("location", Path(data.name).name), ("offset", data.tell()), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(entry))
    array.tofile(data)
    return tensor


def _nodes(layer: int, shape: Shape, layers: int) -> list[onnx.NodeProto]:
    parts = [f"{layer}.{part}" for part in shape.parts]
    inputs = [f"{layer}.in", f"{layer}.gate", f"{layer}.gate_bias", "", *parts[:2], "", "", *parts[2:]]
    if layer + 1 < layers:
        inputs += ["", "", f"{layer + 1}.gate"]
    block = helper.make_node(
        "MoEBlockFP4",
        inputs,
        [f"{layer}.y"],
        name=f"layer{layer}",
        domain=DOMAIN,
        top_k=shape.top_k,
        gated=1,
        activation="silu",
        accuracy_level=4,
    )
    return [
        block,
        helper.make_node("Gather", ["drift", f"{layer}.index"], [f"{layer}.drift"]),
        helper.make_node("Sum", [f"{layer}.in", f"{layer}.y", f"{layer}.drift"], [f"{layer}.sum"]),
        helper.make_node("LpNormalization", [f"{layer}.sum"], [f"{layer + 1}.in"], axis=-1),
    ]


def draw_tokens(layers: int, hidden: int, seed: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The model's inputs, token after token."""
    random = np.random.default_rng(seed)
    drift_weight = np.sqrt(LAYER_CORRELATION**-2 - 1)
    states = random.standard_normal((layers + 1, hidden), np.float32)
    while True:
        fresh = random.standard_normal((layers + 1, hidden), np.float32)
        states = np.float32(TOKEN_CORRELATION) * states + np.float32(np.sqrt(1 - TOKEN_CORRELATION**2)) * fresh
        units = states / np.linalg.norm(states, axis=1, keepdims=True)
        yield {"0.in": units[:1], "drift": np.float32(drift_weight) * units[1:]}
