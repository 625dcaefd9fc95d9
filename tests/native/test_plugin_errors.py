"""When ONNX Runtime refuses a node of the plugin's, and that it says why: types of attributes and inputs, shapes.

Values of attributes and shapes that contradict each other are in conformance/test_misuse.py; here is at which moment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import onnx_moe
from onnx_moe.operators import EXPERT_GEMM, ROUTER

from .models import (
    BFLOAT16,
    DOUBLE,
    EXPERT_GEMM_INPUTS,
    FLOAT,
    FLOAT16,
    INT64,
    LEGAL_INPUTS,
    NODE_NAME,
    ROUTER_INPUTS,
    Shape,
    node_model,
)

ATTRIBUTES: dict[str, dict[str, Any]] = {ROUTER: {"top_k": 2}, EXPERT_GEMM: {}}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the errors are expected
    return onnx_moe.InferenceSession(model.SerializeToString(), options)


def feeds(inputs: dict[str, tuple[int, Shape]]) -> dict[str, NDArray[Any]]:
    """Zeros of the types and shapes, which are sizes here."""
    return {
        name: np.zeros([int(size) for size in shape or ()], onnx.helper.tensor_dtype_to_np_dtype(element_type))
        for name, (element_type, shape) in inputs.items()
    }


@pytest.mark.parametrize(
    ("operator", "name", "value", "needed"),
    [
        (ROUTER, "top_k", 2.0, "an int"),
        (ROUTER, "top_k", "2", "an int"),
        (ROUTER, "top_k", [2], "an int"),
        (ROUTER, "scaling_factor", 2, "a float"),
        (ROUTER, "norm_epsilon", "tiny", "a float"),
        (ROUTER, "scoring", 1, "a string"),
        (EXPERT_GEMM, "gated", 1.0, "an int"),
        (EXPERT_GEMM, "alpha", 1, "a float"),
        (EXPERT_GEMM, "format", ["mxfp4"], "a string"),
    ],
)
def test_attribute_of_another_type(operator: str, name: str, value: Any, needed: str) -> None:
    attributes = {**ATTRIBUTES[operator], name: value}
    with pytest.raises(Exception, match=rf"{operator} node '{NODE_NAME}': attribute {name} must be {needed}"):
        session(node_model(operator, LEGAL_INPUTS[operator], attributes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": FLOAT16}, "input bias is float16, but must be float: cast it"),
        ({"x": FLOAT16, "bias": BFLOAT16}, "input bias is bfloat16, but must be float or float16: cast it"),
        ({"scales": FLOAT}, "input scales is float, but must be uint8 or float16: cast it"),
        ({"scales": FLOAT16}, "input scales is float16, but format mxfp4 takes uint8"),
        ({"weights": FLOAT}, r"tensor\(float\).*weights"),
        ({"expert_ids": INT64}, r"tensor\(int64\).*expert_ids"),
        ({"x": DOUBLE}, r"tensor\(double\).*\(x\)"),
        ({"global_scale": FLOAT16}, r"tensor\(float16\).*global_scale"),
        ({"expert_weights": BFLOAT16}, r"tensor\(bfloat16\).*expert_weights"),
        ({"gate_weight": FLOAT16}, "input gate_weight is float16, but must be float: cast it"),
        ({"hidden_states": BFLOAT16, "gate_bias": FLOAT16}, "gate_bias is float16, but must be float or bfloat16"),
        ({"correction_bias": FLOAT16}, r"tensor\(float16\).*correction_bias"),
        ({"hidden_states": INT64}, r"tensor\(int64\).*hidden_states"),
    ],
    ids=str,
)
def test_input_of_another_type(changes: dict[str, int], message: str) -> None:
    operator = ROUTER if next(iter(changes)) in ROUTER_INPUTS else EXPERT_GEMM
    legal = LEGAL_INPUTS[operator]
    inputs = {name: (changes.get(name, element_type), shape) for name, (element_type, shape) in legal.items()}
    with pytest.raises(Exception, match=message) as caught:
        session(node_model(operator, inputs, ATTRIBUTES[operator]))
    assert NODE_NAME in str(caught.value)


#: One wrong shape of each input, and what the message says of it.
WRONG_SHAPES: dict[str, tuple[Shape, str]] = {
    "hidden_states": ((5, 31), r"gate_weight has shape \[8, 32\], but must be \[E, H\] = \[\?, 31\]"),
    "gate_weight": ((32,), r"gate_weight has shape \[32\], but must be \[E, H\]"),
    "gate_bias": ((7,), r"gate_bias has shape \[7\], but must be \[E\] = \[8\]"),
    "correction_bias": ((8, 1), r"correction_bias has shape \[8, 1\], but must be \[E\] = \[8\]"),
    "x": ((5, 2, 2, 64), r"x has shape \[5, 2, 2, 64\], but must be \[\.\.\., K\] = \[5, 64\]"),
    "expert_ids": ((4, 2), r"x has shape \[5, 64\], but must be \[\.\.\., K\] = \[4, 64\]"),
    "weights": ((8, 34, 24), r"weights has K = 48 columns, .* mxfp4's block of 32: pad K with zeros"),
    "scales": ((8, 34, 4), r"scales has shape \[8, 34, 4\], but must be \[E, N, K/block\] = \[8, 34, 2\]"),
    "global_scale": ((2, 8), r"global_scale has shape \[2, 8\], but must be \[E\] or \[E, 2\] = \[8, 2\]"),
    "bias": ((34,), r"bias has shape \[34\], but must be \[E, N\] = \[8, 34\]"),
    "expert_weights": ((5, 2, 1), r"expert_weights has shape \[5, 2, 1\], but must be \[\.\.\., k\] = \[5, 2\]"),
}


def with_wrong_shape(name: str) -> tuple[str, dict[str, tuple[int, Shape]], str]:
    """Operator, its inputs with a wrong shape of `name`, and the message."""
    operator = ROUTER if name in ROUTER_INPUTS else EXPERT_GEMM
    shape, message = WRONG_SHAPES[name]
    inputs = {**LEGAL_INPUTS[operator], name: (LEGAL_INPUTS[operator][name][0], shape)}
    return operator, inputs, rf"{operator} node '{NODE_NAME}': input {message}"


def test_every_input_has_a_wrong_shape() -> None:
    assert WRONG_SHAPES.keys() == ROUTER_INPUTS.keys() | EXPERT_GEMM_INPUTS.keys()


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_a_declared_shape_is_refused_when_the_session_is_made(name: str) -> None:
    operator, inputs, message = with_wrong_shape(name)
    with pytest.raises(Exception, match=message):
        session(node_model(operator, inputs, ATTRIBUTES[operator]))


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_an_open_shape_is_refused_when_it_arrives_and_the_session_lives_on(name: str) -> None:
    operator, inputs, message = with_wrong_shape(name)
    legal = LEGAL_INPUTS[operator]
    open_inputs: dict[str, tuple[int, Shape]] = {key: (element_type, None) for key, (element_type, _) in legal.items()}
    made = session(node_model(operator, open_inputs, ATTRIBUTES[operator]))
    right, wrong = feeds(dict(legal)), feeds(inputs)
    right["scales" if operator == EXPERT_GEMM else "hidden_states"] += 1  # so that the outputs are not all zeros
    before = made.run(None, right)
    with pytest.raises(Exception, match=message):
        made.run(None, wrong)
    for first, second in zip(before, made.run(None, right), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("attributes", [{"format": "fp4"}, {"format": "nvfp4"}], ids=str)
def test_static_scales_of_another_format(attributes: dict[str, Any]) -> None:
    message = "float16" if attributes["format"] == "fp4" else r"scales has shape \[8, 34, 2\]"
    with pytest.raises(Exception, match=message) as caught:
        session(node_model(EXPERT_GEMM, EXPERT_GEMM_INPUTS, attributes))
    assert NODE_NAME in str(caught.value)


@pytest.mark.parametrize("expert", [-1, 8, 2**31 - 1])
@pytest.mark.parametrize("leading", [(5,), (2, 3)])
def test_an_expert_that_does_not_exist_is_named_and_the_session_lives_on(expert: int, leading: tuple[int, ...]) -> None:
    inputs: dict[str, tuple[int, Shape]] = {
        **{name: EXPERT_GEMM_INPUTS[name] for name in ("weights", "scales")},
        "x": (FLOAT, (*leading, 64)),
        "expert_ids": (EXPERT_GEMM_INPUTS["expert_ids"][0], (*leading, 2)),
    }
    made = session(node_model(EXPERT_GEMM, inputs, {}))
    right = feeds(inputs)
    right["x"] += np.linspace(-1, 1, 64, dtype=np.float32)
    right["weights"] += 0x27
    right["scales"] += 127
    before = made.run(None, right)[0]
    wrong = {name: array.copy() for name, array in right.items()}
    wrong["expert_ids"].reshape(-1)[-1] = expert
    row = int(np.prod(leading)) - 1
    message = rf"node '{NODE_NAME}': expert_ids holds {expert} in row {row}, slot 1, but experts are numbered 0 to 7"
    with pytest.raises(Exception, match=message):
        made.run(None, wrong)
    assert np.abs(before).min() > 0
    np.testing.assert_array_equal(made.run(None, right)[0], before)


def test_a_missing_required_input_is_refused() -> None:
    with pytest.raises(Exception, match=NODE_NAME):
        session(node_model(EXPERT_GEMM, {name: EXPERT_GEMM_INPUTS[name] for name in ("x", "expert_ids")}, {}))
