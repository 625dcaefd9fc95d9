"""The routing commands: what they print, write and refuse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import onnx_moe
from onnx_moe.cli import app
from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.routing import RoutingProfile, load_trace, save_trace, simulate_routing
from onnx_moe.routing.text_runs import Requests, profile_text
from onnx_moe.routing.trace import DECODE, PREFILL
from tools.model_table.architectures import make_model


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routing")


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A small decoder as ONNX, and the folder of a tokenizer."""
    model = make_model("qwen3_moe")
    model.resize_token_embeddings(2048)  # the tokenizer's
    path = folder / "small.onnx"
    onnx_moe.export(model, None, path, functions=False)
    with as_file(files("onnx_moe") / "data" / "tiny-glm") as tokenizer_folder:
        yield path, tokenizer_folder


def test_profile_runs_a_model(folder: Path, decoder: tuple[Path, Path]) -> None:
    model, tokenizer = decoder
    text = folder / "text.txt"
    text.write_text((tokenizer / "heldout.txt").read_text(encoding="utf-8")[:20000], encoding="utf-8")
    output = invoke(
        "profile", str(model), "--text", str(text), "--tokenizer", str(tokenizer), "--output", str(folder / "out"),
        "--prompt-tokens", "20", "--decoded-tokens", "12", "--requests", "3",
    )  # fmt: skip
    assert re.search(r"tokens\s+60 of prompts, 36 decoded, 3 requests", output)
    assert re.search(r"layers × experts, top-k\s+2 × 8, 2", output)
    profile = RoutingProfile.load(folder / "out.npz")
    # Experts of 2 · 32 × 64 and 64 × 32 weights: 4.25 bits each.
    assert profile.model.expert_bytes == (2 * 32 * 64 + 64 * 32) * 17 // 32
    assert profile.counts["calls"].tolist() == [[3] * 2, [36] * 2]
    assert profile.sample is not None
    assert profile.sample.requests.max() == 2
    document = json.loads((folder / "out.json").read_text())
    assert document["recorded"]["source"] == "text.txt"
    assert document["recorded"]["has_weights"]
    assert (folder / "out.html").read_text(encoding="utf-8").startswith("<!")


def test_profile_takes_the_folder_of_an_export(folder: Path, decoder: tuple[Path, Path]) -> None:
    model, tokenizer = decoder
    whole = folder / "Small-4.7-Flash"
    whole.mkdir()
    shutil.copy(model, whole / "model.onnx")
    for file in (model.with_name("small.onnx.data"), tokenizer / "tokenizer.json", tokenizer / "tokenizer_config.json"):
        shutil.copy(file, whole)
    text = folder / "short.txt"
    text.write_text("One short text of a few tokens.", encoding="utf-8")
    invoke("profile", str(whole), "--text", str(text))
    assert (folder / "Small-4.7-Flash-routing.html").exists()


def test_decoding_routes_as_the_prompt_does(decoder: tuple[Path, Path]) -> None:
    """What makes it right to replay a prompt's tokens one by one."""
    tokens = np.random.default_rng(0).integers(10, 2000, 24)
    together = profile_text(decoder[0], [("x", tokens)], Requests(24, 1, 1)).sample
    apart = profile_text(decoder[0], [("x", tokens)], Requests(1, 23, 1)).sample
    assert together is not None
    assert apart is not None
    assert together.tokens_of_calls.tolist() == [24] * 2
    assert together.phases.tolist() == [PREFILL] * 2
    assert apart.phases.tolist() == [DECODE] * 46
    same = together.token_by_token().experts.reshape(-1, 2)[2:] == apart.experts.reshape(-1, 2)
    assert same.all(1).mean() > 0.95  # float sums differ in their last digits


def test_requests_are_pieces_of_a_text() -> None:
    tokens = np.arange(100)
    assert [piece.tolist()[0] for piece in Requests(10, 10, 3).of(tokens)] == [0, 40, 80]
    assert [len(piece) for piece in Requests(10, 10, 99).of(tokens)] == [20] * 5
    assert [len(piece) for piece in Requests(80, 80, 4).of(tokens)] == [100]
    with pytest.raises(InvalidInputError, match="decoded_tokens is 0"):
        Requests(10, 0)


def test_simulate_writes_report_and_trace(folder: Path) -> None:
    trace = folder / "drawn.npz"
    output = invoke(
        "simulate", "olmoe-1b-7b", "--tokens", "60", "--output", str(folder / "olmoe"), "--trace", str(trace)
    )  # fmt: skip
    assert re.search(r"layers × experts, top-k\s+16 × 64, 8", output)
    assert "routing is simulated, not recorded" in " ".join(output.split())
    assert load_trace(trace).num_calls > 60 * 16
    assert json.loads((folder / "olmoe.json").read_text())["model"]["name"] == "olmoe-1b-7b"
    assert (folder / "olmoe.html").exists()


@pytest.fixture(scope="module")
def trace(folder: Path) -> Path:
    path = folder / "plan.npz"
    save_trace(simulate_routing("olmoe-1b-7b", 120), path)
    return path


class TestPlan:
    def test_answers(self, trace: Path, folder: Path) -> None:
        counters = folder / "counters.txt"
        output = invoke(
            "plan", str(trace), "--memory", "1GiB", "--disk-bandwidth", "2GB/s", "--model", "olmoe-1b-7b",
            "--counters", str(counters), "--compute-rate", "40",
        )  # fmt: skip
        rates = re.findall(
            r"│ (LRU|decayed LFU|pinned by the first quarter|Belady \(knows the future\))\s+│ +([\d.]+)%", output
        )
        assert len(rates) == 4
        assert re.search(r"│\s+90% │\s+[\d.]+ [GM]B │\s+\d+% │\s+[\d.]+ \(", output)
        assert "counted on 90 tokens after 30" in output
        header, *lines = counters.read_text().splitlines()
        assert header == "moe_expert_state 1"
        assert {int(line.split()[1]) for line in lines} == set(range(16))
        assert f"onnx_moe.counters = {counters}, onnx_moe.cache_bytes = {2**30}" in output

    def test_a_profile_knows_its_experts_size(self, folder: Path) -> None:
        output = invoke("simulate", "olmoe-1b-7b", "--tokens", "40", "--output", str(folder / "o2"))
        output = invoke("plan", str(folder / "o2.npz"), "--memory", "10GB", "--disk-bandwidth", "1GB/s")
        assert "not limited" in output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("--memory", "1GiB", "--disk-bandwidth", "2GB/s"),
                "does not say how large an expert is: give --expert-bytes",
            ),
            (
                ("--memory", "1MB", "--disk-bandwidth", "2GB/s", "--expert-bytes", "1MB"),
                "one slot is for reading: give at least 129000000 bytes",
            ),
            (("--memory", "much", "--disk-bandwidth", "2GB/s", "--expert-bytes", "1MB"), "memory is 'much'"),
            (("--memory", "1GB", "--disk-bandwidth", "fast", "--expert-bytes", "1MB"), "disk bandwidth is 'fast'"),
            (("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--model", "olmo"), "Unknown model 'olmo'"),
            (
                ("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--expert-bytes", "1MB", "--compute-rate", "-1"),
                "compute rate is -1.0",
            ),
            (
                ("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--expert-bytes", "1MB", "--compute-rate", "nan"),
                "compute rate is nan",
            ),
            (("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--expert-bytes", "0.4"), "expert bytes is '0.4'"),
            (("--memory", "1GB", "--disk-bandwidth", "0.1", "--expert-bytes", "1MB"), "disk bandwidth is '0.1'"),
            (
                ("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--expert-bytes", "1MB", "--model", "olmoe-1b-7b"),
                "--model and --expert-bytes both tell",
            ),
            (
                ("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--expert-bytes", "1MB", "--format", "nonsense"),
                "--format nonsense does nothing without --model",
            ),
            (
                ("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--model", "glm-4.7-flash"),
                "glm-4.7-flash has 46 MoE layers of 64 experts, top-4, but the trace has 16 of 64, top-8",
            ),
            (
                ("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--model", "olmoe-1b-7b", "--top-k", "2"),
                "has top_k 8, but 2 was given: leave it out",
            ),
            (
                ("--memory", "1GB", "--disk-bandwidth", "2GB/s", "--model", "olmoe-1b-7b", "--report", "a.pdf"),
                "a report cannot be written as 'a.pdf'",
            ),
        ],
    )
    def test_misuse_is_named(self, trace: Path, arguments: tuple[str, ...], message: str) -> None:
        with pytest.raises(OnnxMoeError, match=message):
            CliRunner().invoke(app, ["plan", str(trace), *arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "gpt-5"), "Unknown model 'gpt-5'"),
        (("simulate", "mixtral", "--tokens", "0"), "tokens is 0"),
        (("simulate", "mixtral", "--seed", "-1"), "seed is -1, but must be at least 0"),
        (("simulate", "mixtral", "--trace", "t.parquet"), "unknown suffix"),
        (("profile", "no.onnx"), "no.onnx needs text to run on: give --text FILE"),
        (("profile", "no.onnx", "--text", "t", "--top-k", "2"), "--top-k does nothing for a model such as no.onnx"),
        (("profile", "no.npz", "--text", "t"), "--text does nothing for a trace such as no.npz"),
        (("profile", "no.npz"), "no.npz is not a file"),
        (("profile", "no.onnx", "--text", "no.txt"), "holds no tokenizer"),
    ],
)
def test_misuse_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OnnxMoeError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_profile_names_what_it_cannot_run(tmp_path: Path, decoder: tuple[Path, Path]) -> None:
    model, tokenizer = decoder
    (tmp_path / "empty.txt").write_text(" \n")
    for arguments, message in (
        ([str(model), "--text", str(tmp_path / "empty.txt")], "empty.txt holds no text"),
        ([str(model), "--text", str(tmp_path / "none.txt")], "none.txt cannot be read as text"),
        ([str(tmp_path / "none.onnx"), "--text", str(tokenizer / "heldout.txt")], "none.onnx is not a file"),
    ):
        with pytest.raises(OnnxMoeError, match=message):
            CliRunner().invoke(app, ["profile", *arguments, "--tokenizer", str(tokenizer)], catch_exceptions=False)
    layer = tmp_path / "layer.onnx"
    import torch

    from onnx_moe.nn import SparseMoE

    onnx_moe.export(SparseMoE(64, 32, 8, 2), (torch.randn(5, 64),), layer, functions=False)
    with pytest.raises(InvalidInputError, match=r"inputs \['.*'\], but a decoder's are input_ids"):
        profile_text(layer, [("x", np.arange(9))])
    with pytest.raises(InvalidInputError, match="there is no text to run"):
        profile_text(model, [])
