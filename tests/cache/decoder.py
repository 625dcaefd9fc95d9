"""A small decoder with a KV cache, of blocks of random experts: its text depends on the last token and the position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.residency.model import HIDDEN, Stack, save

VOCABULARY, POSITIONS, WIDTH = 96, 128, 4


def save_decoder(folder: Path, stack: Stack) -> Path:
    """Writes the model and its external data; returns the model's path."""
    blocks = onnx.load(save(stack, folder)).graph
    random = np.random.default_rng(1)
    tensors = {
        "embedding": random.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32),
        "positions": random.standard_normal((POSITIONS, HIDDEN)).astype(np.float32),
        "head": random.standard_normal((HIDDEN, VOCABULARY)).astype(np.float32),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "zero": np.array([0], np.int64),
        "width": np.array([WIDTH], np.int64),
    }
    node = helper.make_node
    before = [
        node("Gather", ["embedding", "input_ids"], ["embedded"]),
        node("Shape", ["attention_mask"], ["length"], start=1, end=2),
        node("Sub", ["length", "one"], ["last"]),
        node("Gather", ["positions", "last"], ["position"]),
        node("Add", ["embedded", "position"], ["layer0.in"]),
        node("Slice", ["embedded", "zero", "width", "two"], ["narrow"]),
        node("Unsqueeze", ["narrow", "one"], ["new"]),
    ]
    cache = [
        node("Concat", [f"past_key_values.0.{part}", "new"], [f"present.0.{part}"], axis=2) for part in ("key", "value")
    ]
    layers = [each for each in blocks.node if each.op_type != "MoERouter"]
    last = f"layer{stack.layers}.in"
    value = helper.make_tensor_value_info
    past = [1, 1, "past_length", WIDTH]
    graph = helper.make_graph(
        [*before, *layers, *cache, node("MatMul", [last, "head"], ["logits"])],
        "decoder",
        [
            value("input_ids", TensorProto.INT64, [1, "tokens"]),
            value("attention_mask", TensorProto.INT64, [1, "all"]),
            *(value(f"past_key_values.0.{part}", TensorProto.FLOAT, past) for part in ("key", "value")),
        ],
        [value("logits", TensorProto.FLOAT, None)]
        + [value(f"present.0.{part}", TensorProto.FLOAT, None) for part in ("key", "value")],
        [*blocks.initializer, *(numpy_helper.from_array(array, name) for name, array in tensors.items())],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("onnx_moe", 1)]
    path = folder / "decoder.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10),
        path,
        save_as_external_data=True,
        location="decoder.data",
        size_threshold=256,
    )
    return path
