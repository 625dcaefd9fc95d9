"""Each way to misuse an operator: the reference and the plugin say what is wrong, by name and value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest

import onnx_moe
from onnx_moe.errors import OnnxMoeError
from onnx_moe.operators import EXPERT_GEMM, ROUTER

from .cases import GemmCase, RouterCase
from .data import draw_gemm_inputs, draw_router_inputs
from .implementations import session_options, to_torch
from .model import NODE_NAME, one_node_model

Inputs = dict[str, Any]
Change = Callable[[Inputs], Inputs]


@dataclass(frozen=True)
class Misuse:
    """Changes to a use that is legal, and what the message must name."""

    operator: str
    says: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    change: Change = lambda inputs: {}


def gemm(*says: str, change: Change = lambda inputs: {}, **attributes: Any) -> Misuse:
    return Misuse(EXPERT_GEMM, says, attributes, change)


def router(*says: str, change: Change = lambda inputs: {}, **attributes: Any) -> Misuse:
    return Misuse(ROUTER, says, attributes, change)


MISUSES = {
    "format unknown": gemm("format", "int4", "mxfp4", format="int4"),
    "block_size of another format": gemm("block_size", "16", "mxfp4", "32", block_size=16),
    "block_size of no format": gemm("block_size", "48", "fp4", "128", format="fp4", block_size=48),
    "activation unknown": gemm("activation", "swish", "silu", activation="swish"),
    "gated not 0 or 1": gemm("gated", "2", "1", gated=2),
    "gate_layout unknown": gemm("gate_layout", "stacked", "interleaved", gate_layout="stacked", gated=1),
    "gate_layout without gated": gemm("gate_layout", "interleaved", "gated", gate_layout="interleaved"),
    "weight_layout unknown": gemm("weight_layout", "columns", "interleaved", weight_layout="columns"),
    "interleaved weights with interleaved gate": gemm(
        "weight_layout", "gate_layout", "concatenated", weight_layout="interleaved", gate_layout="interleaved", gated=1
    ),
    "interleaved weights of odd groups": gemm("34", "16", "weight_layout", weight_layout="interleaved"),
    "alpha without silu": gemm("alpha", "1.5", "silu", alpha=1.5, activation="gelu"),
    "beta without gated": gemm("beta", "0.5", "gated", beta=0.5),
    "limit without gated": gemm("limit", "7", "gated", limit=7.0),
    "limit negative": gemm("limit", "-1", limit=-1.0, gated=1),
    "accuracy_level too high": gemm("accuracy_level", "5", "4", accuracy_level=5),
    "gated with odd N": gemm("gated", "33", gated=1, change=lambda inputs: _rows(inputs, 33)),
    "expert id too high": gemm("expert_ids", "8", "row 3", change=lambda inputs: _with_id(inputs, 8)),
    "expert id negative": gemm("expert_ids", "-1", "row 3", change=lambda inputs: _with_id(inputs, -1)),
    "x of another K": gemm("x", "63", "64", change=lambda inputs: {"x": inputs["x"][..., :-1]}),
    "x of other rows": gemm("x", "[6, 64]", change=lambda inputs: {"x": inputs["x"][:-1]}),
    "x of a rank too many": gemm("x", "shape [", change=lambda inputs: {"x": inputs["x"][None, None]}),
    "scales of another shape": gemm(
        "scales", "[8, 34, 1]", "[8, 34, 2]", change=lambda inputs: {"scales": inputs["scales"][..., :1]}
    ),
    "scales of another format": gemm(
        "scales", "fp4", "float16", format="fp4", change=lambda inputs: {"scales": inputs["scales"]}
    ),
    "K not of whole blocks": gemm(
        "weights", "62", "32", change=lambda inputs: {"weights": inputs["weights"][..., :-1]}
    ),
    "weights of rank 2": gemm("weights", "shape [", "N, K/2]", change=lambda inputs: {"weights": inputs["weights"][0]}),
    "bias of another shape": gemm(
        "bias", "[8, 33]", "[8, 34]", change=lambda _: {"bias": np.ones((8, 33), np.float32)}
    ),
    "global_scale of other experts": gemm(
        "global_scale", "[7]", "8", change=lambda _: {"global_scale": np.ones(7, np.float32)}
    ),
    "global_scale of halves without gated": gemm(
        "global_scale", "2]", "gated", change=lambda _: {"global_scale": np.ones((8, 2), np.float32)}
    ),
    "expert_weights of another shape": gemm(
        "expert_weights", "[7, 3]", "[7, 2]", change=lambda _: {"expert_weights": np.ones((7, 3), np.float32)}
    ),
    "no slots": gemm("expert_ids", "[7, 0]", change=lambda inputs: {"expert_ids": inputs["expert_ids"][:, :0]}),
    "top_k missing": router("top_k", "missing", top_k=None),
    "top_k 0": router("top_k", "0", "1", top_k=0),
    "top_k of more than all": router("top_k", "9", "8", top_k=9),
    "top_k of more than the groups hold": router("top_k", "3", "2", top_k=3, num_groups=4),
    "scoring unknown": router("scoring", "relu", "sqrt_softplus", scoring="relu"),
    "normalize not 0 or 1": router("normalize", "2", "1", normalize=2),
    "norm_epsilon negative": router("norm_epsilon", "-1", norm_epsilon=-1.0),
    "scaling_factor infinite": router("scaling_factor", "inf", scaling_factor=float("inf")),
    "num_groups not a divisor": router("num_groups", "3", "8", num_groups=3),
    "top_k_groups of more than all": router("top_k_groups", "5", "num_groups", "4", num_groups=4, top_k_groups=5),
    "group_scoring unknown": router("group_scoring", "mean", "top2_sum", group_scoring="mean"),
    "top2_sum of single experts": router(
        "group_scoring", "top2_sum", "1", num_groups=8, top_k_groups=2, group_scoring="top2_sum"
    ),
    "num_shared_experts negative": router("num_shared_experts", "-1", num_shared_experts=-1),
    "gate_weight of another H": router(
        "gate_weight", "[8, 31]", "32", change=lambda inputs: {"gate_weight": inputs["gate_weight"][:, :-1]}
    ),
    "gate_bias of other experts": router(
        "gate_bias", "[7]", "8", change=lambda _: {"gate_bias": np.ones(7, np.float32)}
    ),
    "correction_bias of other experts": router(
        "correction_bias", "[9]", "8", change=lambda _: {"correction_bias": np.ones(9, np.float32)}
    ),
    "next_gate_weight of another H": router(
        "next_gate_weight", "[9, 31]", "32", change=lambda _: {"next_gate_weight": np.ones((9, 31), np.float32)}
    ),
}


def _rows(inputs: Inputs, rows: int) -> Inputs:
    return {name: inputs[name][:, :rows] for name in ("weights", "scales")}


def _with_id(inputs: Inputs, expert_id: int) -> Inputs:
    expert_ids = inputs["expert_ids"].copy()
    expert_ids[3, 1] = expert_id
    return {"expert_ids": expert_ids}


def misused(misuse: Misuse) -> tuple[Inputs, dict[str, Any]]:
    """The inputs and attributes of the misuse."""
    if misuse.operator == ROUTER:
        inputs = dict(vars(draw_router_inputs(RouterCase())))
        attributes = {"top_k": 2, **misuse.attributes}
    else:
        inputs = dict(vars(draw_gemm_inputs(GemmCase(rows=34))))
        attributes = dict(misuse.attributes)
    inputs |= {name: np.ascontiguousarray(array) for name, array in misuse.change(inputs).items()}
    return inputs, {name: value for name, value in attributes.items() if value is not None}


def check_message(misuse: Misuse, message: str) -> None:
    assert [part for part in misuse.says if part not in message] == [], message


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_reference(misuse: Misuse) -> None:
    inputs, attributes = misused(misuse)
    function: Any = onnx_moe.reference.router if misuse.operator == ROUTER else onnx_moe.reference.expert_gemm
    with pytest.raises(OnnxMoeError) as caught:
        function(*(to_torch(array) for array in inputs.values()), **attributes)
    check_message(misuse, str(caught.value))


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
@pytest.mark.parametrize("constant", [False, True], ids=["inputs", "initializers"])
def test_plugin(misuse: Misuse, constant: bool) -> None:
    inputs, attributes = misused(misuse)
    constants = [name for name in inputs if name not in ("x", "hidden_states")] if constant else []
    outputs = {"expert_ids": (6, 2), "expert_weights": (1, 2)} if misuse.operator == ROUTER else {"y": (1, 3)}
    model = one_node_model(misuse.operator, inputs, attributes, constants, outputs)
    options = session_options()
    onnx_moe.register(options)

    def run() -> None:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        session.run(None, {value.name: inputs[value.name] for value in model.graph.input})

    with pytest.raises(Exception, match=NODE_NAME) as caught:
        run()
    check_message(misuse, str(caught.value))
