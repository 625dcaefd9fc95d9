"""Traces in files: what is written is read, what other tools write too, and errors name file and line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import RoutingTrace, load_trace, save_trace
from onnx_moe.routing.trace import DECODE
from tests.routing.traces import random_trace


def assert_same(one: RoutingTrace, other: RoutingTrace) -> None:
    assert (one.num_experts, one.top_k, one.num_layers) == (other.num_experts, other.top_k, other.num_layers)
    for name in ("layers", "phases", "requests", "offsets", "experts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert (one.weights is None) == (other.weights is None)
    if one.weights is not None:
        np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize("suffix", [".npz", ".jsonl"])
@pytest.mark.parametrize("weights", [True, False])
def test_round_trip(tmp_path: Path, suffix: str, weights: bool) -> None:
    trace = replace(random_trace(1, weights=weights), layer_names=("a", "b", "c", "d"))
    path = tmp_path / "new" / f"trace{suffix}"
    save_trace(trace, path)
    assert_same(load_trace(path), trace)
    assert load_trace(path).layer_names == ("a", "b", "c", "d")


@pytest.mark.parametrize("weights", [True, False])
def test_round_trip_of_a_csv(tmp_path: Path, weights: bool) -> None:
    """A CSV does not say which rows of a batch were one call: single sequences come back as they were."""
    trace = random_trace(2, passes=60, weights=weights)
    trace = trace.select((trace.phases != DECODE) | (trace.tokens_of_calls == 1))
    save_trace(trace, tmp_path / "trace.csv")
    assert_same(load_trace(tmp_path / "trace.csv"), trace)


def read(tmp_path: Path, name: str, text: str, **sizes: int) -> RoutingTrace:
    (tmp_path / name).write_text(text)
    return load_trace(tmp_path / name, **sizes)


def test_csv_of_a_route_trace(tmp_path: Path) -> None:
    text = """# route_trace v1
# model=x.gguf arch=qwen3moe n_layer=5 n_expert=8 n_expert_used=2
# layer=1 expert_bytes=1802240 dense_bytes=46448640
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,prefill,0,1,0,3,0.75,miss,1802240
0,prefill,0,1,1,5,0.25,miss,1802240
0,prefill,1,1,0,5,0.5,hit,1802240
0,prefill,1,1,1,2,0.5,miss,1802240
0,prefill,0,4,0,1,0.5,miss,1802240
0,prefill,0,4,1,0,0.5,miss,1802240
0,prefill,1,4,0,1,0.5,hit,1802240
0,prefill,1,4,1,7,0.5,miss,1802240
1,decode,2,1,0,3,0.5,hit,1802240
1,decode,2,1,1,2,0.5,hit,1802240
"""
    trace = read(tmp_path, "route.csv", text)
    assert (trace.num_experts, trace.top_k, trace.layer_names) == (8, 2, ("1", "4"))
    assert trace.layers.tolist() == [0, 1, 0]
    assert trace.phases.tolist() == [0, 0, 1]
    assert trace.requests.tolist() == [0, 0, 1]
    assert trace.experts.tolist() == [3, 5, 5, 2, 1, 0, 1, 7, 3, 2]
    assert trace.weights is not None
    assert trace.weights[0] == 0.75


def test_decoded_tokens_of_one_layer_are_calls_of_their_own(tmp_path: Path) -> None:
    rows = "phase,step,layer,expert\nprefill,0,0,1\nprefill,1,0,2\ndecode,2,0,1\ndecode,3,0,0\n"
    trace = read(tmp_path, "t.csv", rows)
    assert trace.tokens_of_calls.tolist() == [2, 1, 1]
    assert trace.phases.tolist() == [0, 1, 1]


def test_csv_of_layers_and_experts_alone(tmp_path: Path) -> None:
    trace = read(tmp_path, "moe_trace.csv", "layer,expert\n0,3\n0,1\n2,0\n2,1\n0,2\n0,1\n", top_k=2, num_experts=9)
    assert (trace.num_experts, trace.top_k, trace.layer_names) == (9, 2, ("0", "2"))
    assert trace.experts.tolist() == [3, 1, 0, 1, 2, 1]
    assert trace.layers.tolist() == [0, 1, 0]


def test_json_lines_of_others(tmp_path: Path) -> None:
    text = '{"layer": 0, "topk_experts": [[0, 5]], "request_id": 3}\n\n'
    text += '{"layer": 1, "expert_ids": [1, 2, 3, 4], "probs": null}\n'
    trace = read(tmp_path, "t.jsonl", text, top_k=2)
    assert (trace.num_layers, trace.num_experts) == (2, 6)
    assert trace.requests.tolist() == [3, 0]
    assert trace.phases.tolist() == [1, 0]  # one token decodes
    assert trace.offsets.tolist() == [0, 2, 6]
    assert trace.weights is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"layer": 0, "expert_ids": [[1]]}\n{"layer": 0}\n', r"t.jsonl, line 2: there are no 'expert_ids'"),
        ("t.jsonl", '{"layer": 0, "expert_ids": [[1.5]]}\n', "line 1: there are no 'expert_ids'"),
        ("t.jsonl", "no json\n", "t.jsonl, line 1"),
        (
            "t.jsonl",
            '{"layer": 0, "expert_ids": [[1, 2]], "weights": [1]}\n',
            "line 1: 1 weights are given for 2 experts",
        ),
        ("t.jsonl", '{"layer": 0, "expert_ids": [[1]], "phase": "warm"}\n', "line 1: phase='warm' is unknown"),
        ("t.jsonl", '{"layer": 0, "expert_ids": [[1]]}\n{"layer": 0, "expert_ids": [[1, 2]]}\n', r"top_k \[1, 2\]"),
        ("t.jsonl", "", "holds no routing"),
        ("t.csv", "layer,token\n0,1\n", r"columns \['layer', 'token'\]: it needs 'layer' and 'expert'"),
        ("t.csv", "layer,step,expert\n0,0,x\n", "t.csv, line 2: .*'0,0,x'"),
        ("t.csv", "layer,step,expert\n0,0,1\n0,0,2\n0,1,1\n", r"tokens choose \[1, 2\] experts"),
        ("t.csv", "layer,expert\n0,1\n", "no column 'step', so that top_k is not known"),
        ("t.csv", "layer,expert\n", "holds no routing"),
        ("t.npz", "no zip", "t.npz is not a trace"),
        ("t.txt", "", "give a .npz, .jsonl or .csv file"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read(tmp_path, name, text)


def test_whole_tokens_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="3 rows, which are not whole tokens of 2"):
        read(tmp_path, "t.csv", "layer,expert\n0,1\n0,2\n0,1\n", top_k=2)


def test_sizes_below_what_the_file_holds(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"t\.jsonl: the trace holds expert 5"):
        read(tmp_path, "t.jsonl", '{"layer": 0, "expert_ids": [[5]]}\n', num_experts=4)


def test_a_missing_file_and_an_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not a file"):
        load_trace(tmp_path / "no.csv")
    with pytest.raises(InvalidInputError, match=r"unknown suffix: use .npz, .jsonl or .csv"):
        save_trace(random_trace(0), tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        # Numbers that would become others.
        ("t.jsonl", '{"layer": 0, "expert_ids": [[4294967297]]}\n', "line 1: expert 4294967297 does not fit"),
        ("t.csv", "layer,step,expert\n0,0,4294967297\n", r"t.csv, line 2: expert is 4294967297, but must lie in \[0"),
        ("t.jsonl", '{"layer": -1, "expert_ids": [[1]]}\n', r"line 1: layer is -1, but must lie in \[0, 2"),
        ("t.csv", "layer,step,expert\n-1,0,1\n", "t.csv, line 2: layer is -1"),
        ("t.jsonl", '{"layer": 0, "expert_ids": [[1]], "request": 1099511627776}\n', "line 1: request is 1099"),
        # Weights in one place and not in another, or no numbers.
        (
            "t.jsonl",
            '{"layer": 0, "expert_ids": [[1]], "probs": [[1]]}\n{"layer": 0, "expert_ids": [[1]]}\n',
            "weights in 1 of 2 calls: give them in all, or in none",
        ),
        ("t.csv", "layer,step,expert,weight\n0,0,1,0.5\n0,1,1,\n", "line 3: there is no weight, but rows"),
        ("t.csv", "layer,step,expert,weight\n0,0,1,\n0,1,1,0.5\n", "line 3: there is no weight"),
        ("t.csv", "layer,step,expert,weight\n0,0,1,nan\n", "line 2: weight is nan"),
        ("t.jsonl", '{"layer": 0, "expert_ids": [[1]], "probs": [[NaN]]}\n', "holds weight nan at position 0"),
        (
            "t.jsonl",
            '{"layer": 0, "expert_ids": [[1, 2]], "probs": [[0.1, 0.6, 0.3]]}\n',
            "3 weights are given for 2 experts: a trace has those of the chosen experts",
        ),
        # Slots that are none.
        ("t.csv", "layer,step,slot,expert\n0,0,0,1\n0,0,2,2\n", r"token 0 has the slots \[0, 2\], but they must"),
        ("t.npz", "", r"t.npz is not a trace \("),
        ("t.jsonl", '{"num_layers": 3}\n', "line 1: 'layer'"),
    ],
)
def test_what_would_be_read_as_something_else(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read(tmp_path, name, text)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_binary_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00layer,expert\n")
    with pytest.raises(InvalidInputError, match=rf"{name} is not text"):
        load_trace(tmp_path / name)


def test_damaged_arrays(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    save_trace(random_trace(1), path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:400] + bytes(64) + whole[464:]):
        path.write_bytes(damaged)
        with pytest.raises(InvalidInputError, match=r"t.npz is not a trace \(.+\): give a file that save_trace wrote"):
            load_trace(path)


def test_offsets_that_fall() -> None:
    trace = random_trace(1)
    offsets = trace.offsets.copy()
    offsets[1:3] = offsets[2:0:-1]
    with pytest.raises(InvalidInputError, match="they must rise from 0 to that number"):
        replace(trace, offsets=offsets)


@pytest.mark.parametrize("size", ["num_experts", "num_layers", "top_k"])
@pytest.mark.parametrize("suffix", [".npz", ".jsonl"])
def test_sizes_that_the_file_contradicts(tmp_path: Path, suffix: str, size: str) -> None:
    path = tmp_path / f"t{suffix}"
    trace = random_trace(1)
    save_trace(trace, path)
    assert_same(load_trace(path, **{size: getattr(trace, size)}), trace)
    with pytest.raises(InvalidInputError, match=f"{size} {getattr(trace, size)}, but 99 was given: leave it out"):
        load_trace(path, **{size: 99})


def test_slots_order_a_token_s_experts(tmp_path: Path) -> None:
    text = "layer,step,slot,expert,weight\n0,0,1,5,0.25\n0,0,0,3,0.75\n0,1,0,2,0.5\n0,1,1,4,0.5\n"
    trace = read(tmp_path, "t.csv", text)
    assert trace.experts.tolist() == [3, 5, 2, 4]
    assert trace.weights is not None
    assert trace.weights.tolist() == [0.75, 0.25, 0.5, 0.5]


def test_a_csv_without_phases(tmp_path: Path) -> None:
    """Tokens of a layer beside each other are a prompt, as in JSON lines; a single one decodes."""
    text = "step,layer,expert\n0,0,1\n1,0,2\n0,1,3\n1,1,4\n2,0,1\n2,1,3\n3,0,2\n3,1,2\n"
    trace = read(tmp_path, "t.csv", text)
    assert trace.phases.tolist() == [0, 0, 1, 1, 1, 1]
    assert trace.tokens_of_calls.tolist() == [2, 2, 1, 1, 1, 1]
