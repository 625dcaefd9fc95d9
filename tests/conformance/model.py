"""Models of one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_moe.operators import DOMAIN, VERSION, get_operator

NODE_NAME = "node_under_test"


def one_node_model(
    operator: str,
    inputs: Mapping[str, np.ndarray | None],
    attributes: Mapping[str, Any],
    constants: Sequence[str],
    outputs: Mapping[str, tuple[int, int]],
    opset: int = 21,
) -> onnx.ModelProto:
    """A model of one node of `operator`.

    inputs: arrays by the operator's input names; None: omitted. Those in `constants` become initializers, the
    others graph inputs with free dimensions.
    outputs: the element type (of TensorProto) and the rank of each output by name.
    """
    names = [value.name if inputs.get(value.name) is not None else "" for value in get_operator(operator).inputs]
    while not names[-1]:
        names.pop()
    node = helper.make_node(operator, names, list(outputs), name=NODE_NAME, domain=DOMAIN, **attributes)
    given = {name: array for name, array in inputs.items() if array is not None}
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            _value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.ndim)
            for name, array in given.items()
            if name not in constants
        ],
        [_value_info(name, element_type, rank) for name, (element_type, rank) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in given.items() if name in constants],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _value_info(name: str, element_type: int, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, [f"{name}_{axis}" for axis in range(rank)])
