"""A stack of MoE blocks whose experts lie in a file, as an exported model has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnx_moe
from onnx_moe.cache import CacheEngine, engine
from onnx_moe.operators import DOMAIN, VERSION
from onnx_moe.routing import RoutingTrace
from onnx_moe.routing.trace import Call

HIDDEN, INTERMEDIATE = 64, 96


@dataclass(frozen=True)
class Stack:
    """Layers of blocks with residual connections; each layer's router also gives its expert ids as an output."""

    layers: int = 3
    experts: int = 16
    top_k: int = 2
    fused: bool = True
    #: Routers that know the next one's matrix.
    next_gates: bool = False
    #: Every layer works on the values of the model's input, so that the next layer's gate sees what it will see.
    #: (Each still waits for the one before it.)
    same_input: bool = False
    #: How routers choose: "plain", by logits with a "gate_bias", or "grouped": sigmoid, correction bias, groups.
    choice: str = "plain"
    seed: int = 0


def _choice(
    stack: Stack, name: str, tensors: dict[str, NDArray[Any]], rng: np.random.Generator
) -> tuple[str, str, dict[str, Any]]:
    """Names of gate bias and correction bias, which are added to the tensors, and the router's attributes."""
    if stack.choice == "plain":
        return "", "", {}
    bias = f"{name}.bias"
    if stack.choice == "gate_bias":
        tensors[bias] = (4 * rng.standard_normal(stack.experts)).astype(np.float32)
        return bias, "", {}
    tensors[bias] = (0.2 * rng.standard_normal(stack.experts)).astype(np.float32)
    return "", bias, {"scoring": "sigmoid", "num_groups": 4, "top_k_groups": 2, "group_scoring": "top2_sum"}


def _layer(stack: Stack, index: int, rng: np.random.Generator) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    name = f"layer{index}"
    shapes = {"gate_up": (2 * INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
    tensors: dict[str, NDArray[Any]] = {
        f"{name}.gate": rng.standard_normal((stack.experts, HIDDEN)).astype(np.float32),
    }
    for projection, (rows, columns) in shapes.items():
        size = (stack.experts, rows, columns)
        tensors[f"{name}.{projection}.weights"] = rng.integers(0, 256, (*size[:2], columns // 2), dtype=np.uint8)
        tensors[f"{name}.{projection}.scales"] = rng.integers(118, 122, (*size[:2], columns // 32), dtype=np.uint8)
    hidden, ids, weights, out = (f"{name}.{value}" for value in ("in", "ids", "probabilities", "out"))
    gate_up, down = (
        [f"{name}.{projection}.weights", f"{name}.{projection}.scales"] for projection in ("gate_up", "down")
    )
    gate_bias, correction_bias, how = _choice(stack, name, tensors, rng)
    next_gate = f"layer{index + 1}.gate" if stack.next_gates and index + 1 < stack.layers else ""
    router = helper.make_node(
        "MoERouter",
        [hidden, f"{name}.gate", gate_bias, correction_bias, "" if stack.fused else next_gate],
        [ids, weights],
        name=f"{name}.router",
        domain=DOMAIN,
        top_k=stack.top_k,
        **how,
    )
    gated = {"gated": 1, "activation": "silu"}
    if stack.fused:
        experts = [
            helper.make_node(
                "MoEBlockFP4",
                [hidden, f"{name}.gate", gate_bias, correction_bias, *gate_up, "", "", *down, "", "", next_gate],
                [f"{name}.y"],
                name=f"{name}.block",
                domain=DOMAIN,
                top_k=stack.top_k,
                **gated,
                **how,
            )
        ]
    else:
        experts = [
            helper.make_node(
                "MoEExpertGemmFP4",
                [hidden, ids, *gate_up],
                [f"{name}.h"],
                name=f"{name}.gate_up",
                domain=DOMAIN,
                **gated,
            ),
            helper.make_node(
                "MoEExpertGemmFP4",
                [f"{name}.h", ids, *down, "", "", weights],
                [f"{name}.y"],
                name=f"{name}.down",
                domain=DOMAIN,
            ),
        ]
    following = f"layer{index + 1}.in"
    if stack.same_input:
        zero = helper.make_node("Sub", [f"{name}.y", f"{name}.y"], [out])
        return [router, *experts, zero, helper.make_node("Add", [hidden, out], [following])], tensors
    residual = helper.make_node("Add", [hidden, f"{name}.y"], [out])
    normal = helper.make_node("LpNormalization", [out], [following], axis=-1)
    return [router, *experts, residual, normal], tensors


def save(stack: Stack, folder: Path) -> Path:
    """Writes the model and its external data; returns the model's path."""
    rng = np.random.default_rng(stack.seed)
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, NDArray[Any]] = {}
    for index in range(stack.layers):
        of_layer, more = _layer(stack, index, rng)
        nodes += of_layer
        tensors |= more
    ids = [f"layer{index}.ids" for index in range(stack.layers)]
    last = f"layer{stack.layers}.in"
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("layer0.in", TensorProto.FLOAT, ["tokens", HIDDEN])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)]
        + [helper.make_tensor_value_info(name, TensorProto.INT32, None) for name in ids],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = folder / "stack.onnx"
    onnx.save(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location="stack.data", size_threshold=0
    )
    return path


def session(path: Path, threads: int = 1, log_severity: int = 2, **entries: object) -> onnxruntime.InferenceSession:
    """A session with the entries onnx_moe.<name> = value; it logs what is as severe or more."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = log_severity
    options.intra_op_num_threads = threads
    for name, value in entries.items():
        options.add_session_config_entry(f"onnx_moe.{name}", str(value))
    return onnx_moe.InferenceSession(path, options)


def calls(seed: int, sizes: tuple[int, ...] = (5, 1, 1, 1, 12, 1, 1, 2, 1)) -> list[NDArray[np.float32]]:
    """Hidden states of some calls: [tokens, HIDDEN] each."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((size, HIDDEN)).astype(np.float32) for size in sizes]


@dataclass(frozen=True)
class Run:
    """Outputs and expert ids (by call and layer) of some calls, and the engine's statistics after them."""

    outputs: list[bytes]
    ids: list[list[NDArray[np.int32]]]
    statistics: dict[str, Any]


def run(loaded: onnxruntime.InferenceSession, inputs: list[NDArray[np.float32]]) -> Run:
    """Runs every call."""
    outputs, ids = [], []
    for hidden in inputs:
        y, *of_layers = loaded.run(None, {"layer0.in": hidden})
        outputs.append(y.tobytes())
        ids.append(of_layers)
    live: CacheEngine = engine(loaded)
    return Run(outputs, ids, live.statistics())


def trace_of(result: Run, experts: int = 16) -> RoutingTrace:
    """The routing of a run of a stack."""
    visits = [Call(layer, ids) for call in result.ids for layer, ids in enumerate(call)]
    return RoutingTrace.of_calls(visits, experts, len(result.ids[0]))
