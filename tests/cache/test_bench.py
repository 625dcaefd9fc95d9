"""`onnx-moe bench residency`: what it counts is what happens, and its errors say what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from onnx_moe.cli import app
from onnx_moe.errors import InvalidInputError, InvalidModelError, OnnxMoeError
from onnx_moe.residency_bench import Setting, find_model, page_cache
from onnx_moe.residency_bench.bound import belady_hit_rate, with_shared_experts
from onnx_moe.residency_bench.measure import Run, measure
from onnx_moe.residency_bench.sweep import repeated_share
from onnx_moe.routing import Call, RoutingTrace
from tests.cache.decoder import VOCABULARY, save_decoder
from tests.residency.model import HIDDEN, INTERMEDIATE, Stack, save

STACK = Stack(layers=3, experts=16, top_k=2)
TOKENS = 24


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder"), STACK)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["bench", "residency", *map(str, arguments)], env={"COLUMNS": "140"})
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def report(decoder: Path) -> tuple[str, dict[str, Any], Path]:
    folder = decoder.parent
    arguments = ["--prompt", "5,17,3", "--tokens", TOKENS, "--warm-up", 8, "--rounds", 2, "--budgets", "10%,30%,100%"]
    output = invoke(
        decoder, *arguments, "--prefetch", "off,recency", "--json", folder / "r.json", "--chart", folder / "c.png"
    )
    return output, json.loads((folder / "r.json").read_text()), folder / "c.png"


def test_every_combination_is_measured(report: tuple[str, dict[str, Any], Path]) -> None:
    _, figures, _ = report
    combinations = {(each["budget"], each["policy"], each["prefetch"]) for each in figures["pooled"]}
    assert combinations == {
        (budget, policy, prefetch)
        for budget in ("10%", "30%", "100%")
        for policy in ("lru", "decayed-lfu")
        for prefetch in ("off", "recency")
    }
    assert figures["mapped"]["tokens_per_second"] > 0
    assert figures["repeated_share"] < 0.5
    assert len(figures["text"].split()) == TOKENS + 8


def test_counts_are_those_of_the_timed_tokens(report: tuple[str, dict[str, Any], Path]) -> None:
    _, figures, _ = report
    for each in figures["pooled"]:
        if each["budget"] == "10%":
            assert each["refused"].startswith("needs ")
            assert each["tokens_per_second"] == 0
            continue
        assert each["refused"] is None
        assert each["lookups"] == TOKENS * STACK.layers * STACK.top_k
        assert each["hit_rate"] <= each["belady_hit_rate"] + 1e-9
        assert each["bytes_per_token"] > 0
        assert each["cached_before"] == 0
    by_setting = {(each["budget"], each["policy"], each["prefetch"]): each for each in figures["pooled"]}
    quarter, whole = (by_setting[budget, "lru", "off"] for budget in ("30%", "100%"))
    assert quarter["hits"] < whole["hits"]
    # Half a byte a weight and a byte for 32, of gate and up and of down.
    weights = 3 * HIDDEN * INTERMEDIATE
    expert_bytes = weights // 2 + weights // 32
    for each in (quarter, whole):
        assert each["bytes_per_token"] * TOKENS == pytest.approx((each["lookups"] - each["hits"]) * expert_bytes)


def test_the_table_and_the_chart_show_it(report: tuple[str, dict[str, Any], Path]) -> None:
    output, figures, chart = report
    assert "Refused: 10% needs " in output
    assert "Page cache: dropped before each session" in output
    assert f"Every setting wrote the same {TOKENS + 8} tokens" in output
    best = figures["pooled"][-1]
    assert f"{100 * best['hit_rate']:.1f}" in output
    assert chart.read_bytes().startswith(b"\x89PNG")
    pytest.importorskip("matplotlib")
    from matplotlib import image

    pixels = image.imread(chart)
    assert pixels.shape[0] > 500
    assert len(set(map(tuple, pixels[::3, ::3, :3].reshape(-1, 3).tolist()))) > 20, "lines in several colours"


def test_the_trained_model_of_the_package_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    figures = tmp_path / "figures.json"
    settings = ["--budgets", "50%", "--policies", "lru", "--prefetch", "off,next-gate", "--rounds", 1]
    output = invoke("tiny-glm", *settings, "--tokens", 16, "--warm-up", 4, "--json", figures)
    report = json.loads(figures.read_text())
    assert report["model"] == "tiny-glm"
    assert "tiny-glm: 16 tokens after 4" in output
    assert report["text"].strip()
    plain, ahead = report["pooled"]
    assert 0 < plain["hits"] < plain["lookups"]
    assert plain["hit_rate"] <= plain["belady_hit_rate"]
    assert plain["bytes_per_token"] > 0
    assert plain["read_ahead"] is None
    assert ahead["read_ahead"]["signal"] == "next-gate"
    # Trained routers choose much of what the one before foresaw.
    assert ahead["read_ahead"]["correct"] > 0.5 * ahead["read_ahead"]["used"] > 0


def test_the_page_cache_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    path.read_bytes()
    assert page_cache.resident_share([path]) == 1.0
    page_cache.drop([path])
    assert page_cache.resident_share([path]) == 0.0
    assert page_cache.resident_share([]) == 0.0


def test_a_model_that_repeats_itself_is_not_taken_for_typical(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_moe.generation import DecoderSession

    step = DecoderSession.step

    def same(self: DecoderSession, input_ids: Any, attention_mask: Any, cache: Any) -> Any:
        logits, cache = step(self, input_ids, attention_mask, cache)
        return np.eye(logits.shape[-1])[np.full(logits.shape[:-1], 7)], cache

    monkeypatch.setattr(DecoderSession, "step", same)
    output = invoke(
        decoder, "--prompt", "1", "--budgets", "50%", "--policies", "lru", "--prefetch", "off", "--rounds", 1
    )
    assert "The text repeats itself" in output


def test_settings_that_write_other_text_are_an_error(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_moe.residency_bench import sweep

    def wrong(model: Any, setting: Setting, run: Run) -> Any:
        result = measure(model, setting, run)
        return result if setting.budget is None else sweep.dataclasses.replace(result, written=(1, 2))

    monkeypatch.setattr(sweep, "measure", wrong)
    with pytest.raises(OnnxMoeError, match="50%, lru, prefetch off writes another text than the mapped model"):
        invoke(decoder, "--prompt", "1", "--budgets", "50%", "--policies", "lru", "--prefetch", "off", "--rounds", 1)


def test_repeats_are_runs_of_tokens_that_were_there_before() -> None:
    assert repeated_share([7] * 20) == 1 - 1 / 13
    assert repeated_share(list(range(20))) == 0.0
    assert repeated_share([*range(10), *range(10)]) == 1 - 10 / 13
    assert repeated_share([1, 2]) == 0.0


def test_belady_counts_the_last_tokens_and_shared_experts() -> None:
    """Two layers, one slot each to spare: 0 1 | 0 1 | 2 3, an expert 4 that every token shares."""
    calls = [Call(layer, np.array([[expert]], np.int32)) for expert in (0, 0, 2) for layer in (0, 1)]
    trace = with_shared_experts(RoutingTrace.of_calls(calls, 4, 2), 5)
    assert (trace.top_k, trace.num_experts) == (2, 5)
    assert trace.experts.tolist() == [0, 4, 0, 4, 0, 4, 0, 4, 2, 4, 2, 4]
    assert belady_hit_rate(trace, 4, tokens=3) == 6 / 12
    assert belady_hit_rate(trace, 4, tokens=2) == 6 / 8
    assert belady_hit_rate(trace, 4, tokens=1) == 2 / 4


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--prompt", "1", "--policies", "fifo"], OnnxMoeError, "onnx_moe.cache_policy is 'fifo'"),
        (["--prompt", "1", "--prefetch", "magic"], OnnxMoeError, "onnx_moe.prefetch is 'magic'"),
        (["--prompt", "1", "--tokens", 0], InvalidInputError, "the number of tokens is 0"),
        ([], InvalidInputError, "give --prompt TEXT"),
        (["--prompt", "some text"], InvalidInputError, "give --tokenizer FOLDER"),
        (["--prompt", str(VOCABULARY)], OnnxMoeError, "does not run"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_errors_say_what_to_do(decoder: Path, arguments: list[object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        invoke(decoder, "--budgets", "50%", "--rounds", 1, *arguments)
    assert message in str(error.value)


def test_models_that_are_no_decoders_are_refused(tmp_path: Path) -> None:
    stack = save(Stack(layers=1), tmp_path)
    with pytest.raises(InvalidModelError, match="only a decoder with input_ids"):
        invoke(stack, "--prompt", "1")
    with (
        pytest.raises(InvalidModelError, match=r"absent\.onnx is not a file"),
        find_model("absent.onnx", "1", None, print),
    ):
        pass


def test_a_chart_without_matplotlib_is_refused_before_anything_runs(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OnnxMoeError, match="pip install matplotlib"):
        invoke(decoder, "--chart", "c.png")
