"""What the plugin records against what the routers' outputs say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnx_moe
from onnx_moe import OnnxMoeError
from onnx_moe.errors import InvalidInputError
from onnx_moe.generation import DecoderSession
from onnx_moe.nn import SparseMoE
from onnx_moe.operators import DOMAIN, VERSION
from onnx_moe.routing import Recording, record
from tools.model_table.architectures import make_model

Array = NDArray[Any]

HIDDEN, EXPERTS, TOP_K, SHARED = 32, 8, 3, 2


def options(**entries: str) -> onnxruntime.SessionOptions:
    made = onnxruntime.SessionOptions()
    for key, value in entries.items():
        made.add_session_config_entry(f"onnx_moe.{key}", value)
    return made


def routers(names: tuple[str, ...] = ("second", "first")) -> bytes:
    """Two routers in a row, whose ids and weights are outputs; the node named "first" in the list runs last."""
    random = np.random.default_rng(0)
    nodes, outputs, arrays, x = [], [], {}, "x"
    for index, name in enumerate(names):
        arrays[f"gate{index}"] = random.standard_normal((EXPERTS, HIDDEN)).astype(np.float32)
        results = [f"ids{index}", f"weights{index}"]
        nodes.append(
            helper.make_node(
                "MoERouter", [x, f"gate{index}"], results, name, domain=DOMAIN, top_k=TOP_K, num_shared_experts=SHARED
            )
        )
        nodes.append(helper.make_node("ReduceSum", [results[1], "axis"], [f"sum{index}"], keepdims=1))
        nodes.append(helper.make_node("Mul", [x, f"sum{index}"], [f"x{index}"]))
        x = f"x{index}"
        types = (TensorProto.INT32, TensorProto.FLOAT)
        outputs += [helper.make_tensor_value_info(*pair, None) for pair in zip(results, types, strict=True)]
    arrays["axis"] = np.array([-1], np.int64)
    graph = helper.make_graph(
        nodes,
        "routers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", HIDDEN])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def hidden_states(tokens: int, seed: int, batch: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((batch, tokens, HIDDEN)).astype(np.float32)


def test_full_recording_is_what_the_routers_put_out() -> None:
    session = onnx_moe.InferenceSession(routers(), options(trace="full"))
    session.run(None, {"x": hidden_states(9, 9)})  # forgotten
    runs = [(hidden_states(5, 1), 0), (hidden_states(1, 2), 0), (hidden_states(1, 3, batch=4), 1)]
    results = []
    with record(session) as recording:
        for x, request in runs:
            recording.label(request=request)
            results.append(session.run(None, {"x": x}))
    session.run(None, {"x": hidden_states(9, 9)})  # after the block: not part of it
    trace = recording.trace
    assert (trace.num_experts, trace.top_k, trace.layer_names) == (EXPERTS, TOP_K, ("second", "first"))
    assert trace.layers.tolist() == [0, 1] * 3
    assert trace.phases.tolist() == [0, 0, 1, 1, 1, 1]
    assert trace.requests.tolist() == [0, 0, 0, 0, 1, 1]
    for call in range(6):
        ids, weights = results[call // 2][2 * (call % 2) : 2 * (call % 2) + 2]
        part = slice(trace.offsets[call], trace.offsets[call + 1])
        chosen = ids.reshape(-1, TOP_K + SHARED)[:, :TOP_K]
        np.testing.assert_array_equal(trace.experts[part].reshape(-1, TOP_K), chosen)
        assert trace.weights is not None
        routed = weights.reshape(-1, TOP_K + SHARED)[:, :TOP_K]
        np.testing.assert_array_equal(trace.weights[part].reshape(-1, TOP_K), routed)
    assert recording.dropped_calls == 0


@pytest.mark.parametrize("mode", ["counters", "full"])
def test_counters_by_phase(mode: str) -> None:
    session = onnx_moe.InferenceSession(routers(), options(trace=mode))
    with record(session) as recording:
        prompt = session.run(None, {"x": hidden_states(70, 1)})
        decoded = [session.run(None, {"x": hidden_states(1, seed)}) for seed in range(3)]
    for index, layer in enumerate(recording.layers):
        assert layer.calls.tolist() == [1, 3]
        assert layer.tokens.tolist() == [70, 3]
        for phase, results in enumerate(([prompt], decoded)):
            ids = np.concatenate([result[2 * index].reshape(-1, TOP_K + SHARED)[:, :TOP_K] for result in results])
            weights = np.concatenate([r[2 * index + 1].reshape(-1, TOP_K + SHARED)[:, :TOP_K] for r in results])
            for expert in range(EXPERTS):
                assert layer.counts[phase, expert] == (ids == expert).sum()
                mass = weights[ids == expert].astype(np.float64).sum()
                assert layer.mass[phase, expert] == pytest.approx(mass, rel=1e-12, abs=1e-300)


def test_labels_overrule_shapes() -> None:
    session = onnx_moe.InferenceSession(routers(), options(trace="full"))
    with record(session) as recording:
        recording.label(phase="decode", request=7)
        session.run(None, {"x": hidden_states(5, 1)})
        recording.label(phase="prefill")
        session.run(None, {"x": hidden_states(1, 1)})
    assert recording.trace.phases.tolist() == [1, 1, 0, 0]
    assert recording.trace.requests.tolist() == [7, 7, 0, 0]
    with record(session) as recording:  # a new recording starts without labels
        session.run(None, {"x": hidden_states(5, 1)})
    assert recording.trace.phases.tolist() == [0, 0]


def test_full_recording_is_bounded_and_says_what_it_lacks() -> None:
    session = onnx_moe.InferenceSession(routers(), options(trace="full", trace_limit=str(2 * 4 * TOP_K + 1)))
    with record(session) as recording:
        session.run(None, {"x": hidden_states(4, 1)})
        session.run(None, {"x": hidden_states(4, 2)})
        session.run(None, {"x": hidden_states(1, 3)})
    assert recording.trace.num_calls == 2
    assert recording.dropped_calls == 4
    assert [layer.tokens.sum() for layer in recording.layers] == [9, 9]


def test_sessions_of_the_same_options_record_apart() -> None:
    shared = options(trace="counters")
    one, other = (onnx_moe.InferenceSession(routers(), shared) for _ in range(2))
    with record(one) as first, record(other) as second:
        one.run(None, {"x": hidden_states(2, 1)})
        other.run(None, {"x": hidden_states(3, 1)})
    assert first.layers[0].tokens.tolist() == [2, 0]
    assert second.layers[0].tokens.tolist() == [3, 0]


def test_nodes_without_a_name_are_numbered() -> None:
    session = onnx_moe.InferenceSession(routers(("", "named")), options(trace="counters"))
    with record(session) as recording:
        session.run(None, {"x": hidden_states(2, 1)})
    assert [layer.name for layer in recording.layers] == ["router 0", "named"]


def test_a_fused_block_records_what_its_three_nodes_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "layer.onnx"
    layer = SparseMoE(64, 32, 8, 2, num_shared_experts=1)
    onnx_moe.export(layer, (torch.randn(5, 64),), path, dynamic_shapes=({0: "tokens"},), functions=False)
    model = onnx_ir.load(path)
    assert onnx_moe.fuse(model) == 1
    onnx_ir.save(model, tmp_path / "fused.onnx", external_data="fused.data")
    assert {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node} >= {"MoEBlockFP4"}
    traces = []
    x = np.random.default_rng(3).standard_normal((6, 64)).astype(np.float32)
    for name in ("layer.onnx", "fused.onnx"):
        session = onnx_moe.InferenceSession(tmp_path / name, options(trace="full"))
        with record(session) as recording:
            session.run(None, {session.get_inputs()[0].name: x})
        traces.append(recording.trace)
    assert traces[0].top_k == 2
    np.testing.assert_array_equal(traces[0].experts, traces[1].experts)
    np.testing.assert_array_equal(traces[0].weights, traces[1].weights)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"trace": "all"}, "onnx_moe.trace is 'all': use off, counters or full"),
        ({"trace": "full", "trace_limit": "1k"}, "onnx_moe.trace_limit is '1k': use a number of expert ids"),
        ({"trace": "full", "trace_limit": "0"}, "onnx_moe.trace_limit is '0'"),
    ],
)
def test_bad_entries_name_the_node_and_the_remedy(entries: dict[str, str], message: str) -> None:
    with pytest.raises(Exception, match=rf"MoERouter node 'second': session entry {message}"):
        onnx_moe.InferenceSession(routers(), options(**entries))


def test_misuse_is_named() -> None:
    silent = onnx_moe.InferenceSession(routers())
    with pytest.raises(InvalidInputError, match="the session does not record routing"), record(silent):
        pass
    session = onnx_moe.InferenceSession(routers(), options(trace="counters"))
    with record(session) as recording:
        with pytest.raises(InvalidInputError, match="phase='warm' is unknown: use prefill, decode or None"):
            recording.label(phase="warm")
        assert recording.layers == ()
        with pytest.raises(InvalidInputError, match="keeps counters only"):
            _ = recording.trace
    full = onnx_moe.InferenceSession(routers(), options(trace="full"))
    with record(full) as recording, pytest.raises(InvalidInputError, match="no call of a router is recorded"):
        _ = recording.trace
    with pytest.raises(OnnxMoeError, match="no session records under the name 'nobody'"):
        Recording("nobody", "full").label()


def test_a_decoder_s_batches_are_told_from_prompts(tmp_path: Path) -> None:
    """Its routers see [batch · sequence, H] alone: `DecoderSession` says what a step is, a label overrules it, and
    where neither does, only a single row decodes.
    """
    path = tmp_path / "small.onnx"
    onnx_moe.export(make_model("qwen3_moe"), None, path, functions=False)
    session = onnx_moe.InferenceSession(path, options(trace="full"))
    decoder = DecoderSession(session)
    with record(session) as recording:
        cache = decoder.empty_cache(4)
        ids = np.arange(24, dtype=np.int64).reshape(4, 6) % 60
        for begin, end in ((0, 1), (1, 5), (5, 6)):
            _, cache = decoder.step(ids[:, begin:end], np.ones((4, end), np.int64), cache)
        recording.label(phase="prefill", request=3)
        decoder.step(ids[:, :1], np.ones((4, 7), np.int64), cache)
    assert recording.trace.phases.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert recording.trace.requests.tolist() == [0] * 6 + [3] * 2
    with record(session) as recording:
        feeds = {"input_ids": ids[:, :1], "attention_mask": np.ones((4, 1), np.int64)}
        past = {value.name: np.zeros((4, value.shape[1], 0, value.shape[3]), np.float32)
                for value in session.get_inputs() if value.name.startswith("past")}  # fmt: skip
        session.run(None, feeds | past)
    assert recording.trace.phases.tolist() == [0, 0]


def test_requests_are_32_bits() -> None:
    session = onnx_moe.InferenceSession(routers(), options(trace="full"))
    with record(session) as recording, pytest.raises(InvalidInputError, match="request is 1099511627776, but must fit"):
        recording.label(request=2**40)
