"""A decoder that a test can follow: after tokens t₁ … tₙ the likeliest is (t₁ + … + tₙ) mod V, read off the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 11


def next_token(tokens: list[int], vocabulary: int = VOCABULARY) -> int:
    """What the model finds likeliest after `tokens`."""
    return sum(tokens) % vocabulary


def continuation(prompt: list[int], count: int, vocabulary: int = VOCABULARY) -> list[int]:
    """`count` tokens behind `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, vocabulary))
    return tokens[len(prompt) :]


def counting_model(vocabulary: int = VOCABULARY, *, without: str = "") -> onnx.ModelProto:
    """The model. without: the name of an output to leave out."""
    shape = ["batch", 1, "past_length", 1]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence_length"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total_length"]),
        helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("past_key_values.0.value", TensorProto.FLOAT, shape),
    ]
    total = ["batch", 1, "total_length", 1]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence_length", vocabulary]),
        helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT, total),
        helper.make_tensor_value_info("present.0.value", TensorProto.FLOAT, total),
    ]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["rows"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["rows", "axes"], ["new"]),
        helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
        helper.make_node("Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2),
        helper.make_node("ReduceSum", ["present.0.key", "all_axes"], ["sum"], keepdims=0),
        helper.make_node("Mod", ["sum", "vocabulary"], ["token"], fmod=1),
        helper.make_node("Reshape", ["token", "column"], ["tokens"]),
        helper.make_node("Equal", ["tokens", "range"], ["is_next"]),
        helper.make_node("Cast", ["is_next"], ["one_hot"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["rows", "last"], ["column_of_rows"]),
        helper.make_node("Mul", ["column_of_rows", "zero"], ["zeros"]),  # one row of logits for each token
        helper.make_node("Add", ["zeros", "one_hot"], ["logits"]),
    ]
    constants = {
        "axes": np.array([1, 3], np.int64),
        "all_axes": np.array([1, 2, 3], np.int64),
        "last": np.array([2], np.int64),
        "column": np.array([-1, 1, 1], np.int64),
        "vocabulary": np.array([vocabulary], np.float32),
        "range": np.arange(vocabulary, dtype=np.float32),
        "zero": np.zeros(1, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "counting",
        inputs,
        [output for output in outputs if output.name != without],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def save_counting_model(folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """Writes model.onnx into `folder`."""
    onnx.save(counting_model(vocabulary), folder / "model.onnx")
    return folder
