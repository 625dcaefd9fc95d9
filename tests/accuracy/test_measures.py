"""What the suite makes of logits, ids, weights and files, against an evaluation of its own."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onnx_moe.accuracy import AccuracyReport, Golden, Measurement, check, measure, measurement_for
from onnx_moe.accuracy.experts import expected_rmse, relative_rmse
from onnx_moe.accuracy.golden import config_hash, make_golden
from onnx_moe.accuracy.limits import REPEATED, Limits
from onnx_moe.accuracy.measure import _overlap, _predict_text
from onnx_moe.accuracy.report import GoldenResult, Interval, LayerAccuracy, TextAccuracy, Workload
from onnx_moe.errors import InvalidInputError, InvalidModelError, OnnxMoeError
from onnx_moe.quantization import dequantize, quantize

from .fixture import GOLDEN, export, reference

WINDOWS, TOKENS, VOCABULARY = 5, 9, 7


class Replayed:
    """A model whose logits of each window are given: windows begin with their number."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.logits = logits

    def run(self, input_ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], list[Any]]:
        return self.logits[input_ids[:, 0]], []


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    scores = logits.astype(np.float64)
    logs: NDArray[np.float64] = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return logs


def test_predictions_are_compared_window_by_window() -> None:
    random = np.random.default_rng(0)
    theirs = (3 * random.standard_normal((WINDOWS, TOKENS, VOCABULARY))).astype(np.float32)
    ours = theirs + random.standard_normal(theirs.shape).astype(np.float32)
    windows = random.integers(0, VOCABULARY, (WINDOWS, TOKENS))
    windows[:, 0] = range(WINDOWS)
    found = _predict_text(Replayed(ours), Replayed(theirs), windows)  # type: ignore[arg-type]

    logs, reference_logs = (log_probabilities(logits)[:, :-1] for logits in (ours, theirs))
    rows, columns = np.indices((WINDOWS, TOKENS - 1))
    losses, reference_losses = (-some[rows, columns, windows[:, 1:]].mean(1) for some in (logs, reference_logs))
    assert found.perplexity == pytest.approx(np.exp(losses.mean()))
    assert found.reference_perplexity == pytest.approx(np.exp(reference_losses.mean()))
    differences = losses - reference_losses
    half = 1.96 * differences.std(ddof=1) / math.sqrt(WINDOWS)
    expected = np.exp([differences.mean(), differences.mean() - half, differences.mean() + half]) - 1
    assert [found.increase.mean, found.increase.low, found.increase.high] == pytest.approx(expected)
    # What the exported model's predictions lack of the reference's: weighted with the reference's.
    divergences = (np.exp(reference_logs) * (reference_logs - logs)).sum(-1).mean(1)
    assert found.kl_divergence.mean == pytest.approx(divergences.mean())
    assert found.kl_divergence.high == pytest.approx(
        divergences.mean() + 1.96 * divergences.std(ddof=1) / math.sqrt(WINDOWS)
    )
    assert found.top1_agreement == pytest.approx((logs.argmax(-1) == reference_logs.argmax(-1)).mean())


def test_routing_overlaps_where_sets_do() -> None:
    ids, others = np.array([[4, 1, 9], [0, 2, 3]]), np.array([[9, 4, 7], [3, 0, 2]])
    assert _overlap(ids, others) == pytest.approx((2 / 3 + 1) / 2)


GOLD = Golden("hash", (1, 2, 3), (4, 0, 2), (0.5, 3.0, 1.5))


def test_golden_tokens_are_predicted_from_those_before() -> None:
    logits = np.zeros((6, 5), np.float32)
    logits[[2, 3, 4], [4, 1, 2]] = 1  # behind the prompt, and behind each golden token but the last
    assert GOLD.judge(logits) == GoldenResult(tokens=3, agreeing=2, wrong_margins=(3.0,))


def report(golden: GoldenResult, windows: int = 3) -> AccuracyReport:
    """One that keeps to every limit, but for its golden tokens."""
    layer = LayerAccuracy("layers.1.mlp.experts", 0.1, 1e-3, 1e-3, 1e-3, 0.1, 1e-7, 0.99, 1.0, 30)
    narrow = replace(layer, distinct_experts=8)
    workloads = (Workload("128 tokens", 128, 1, (layer,)), Workload(REPEATED, 128, 1, (narrow,)))
    values = [0.01 + 0.001 * window for window in range(windows)]
    text = TextAccuracy(windows, 128 * windows, 9.0, 9.1, Interval.of(values), Interval.of(values), 0.95)
    return AccuracyReport("model.onnx", "folder", "mxfp4", False, 4, workloads, (), text, golden)


@pytest.mark.parametrize(("margins", "good"), [((), True), ((0.1, 1.9), True), ((0.1, 2.1), False)])
def test_another_token_is_an_error_where_the_lead_is_clear(margins: tuple[float, ...], good: bool) -> None:
    assert Limits().golden_margin == 2.0
    findings = check(report(GoldenResult(64, 64 - len(margins), margins)))
    assert {finding.name: finding.good for finding in findings if not finding.good} == (
        {} if good else {"golden tokens": False}
    )


def test_json_has_no_number_that_json_does_not_know(tmp_path: Path) -> None:
    """The interval of one window is infinite."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    single = report(GoldenResult(64, 64, ()), windows=1)
    assert math.isinf(single.text.increase.high)
    single.save(tmp_path / "report.json")
    fields = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert fields["text"]["increase"] == {"mean": 0.01, "low": None, "high": None}
    assert fields["workloads"][0]["layers"][0]["distinct_experts"] == 30
    with pytest.raises(OnnxMoeError, match="cannot be written"):
        single.save(tmp_path / "nowhere" / "report.json")


def test_the_expectation_is_of_all_columns() -> None:
    """Blocks at even distances would all be of the first columns here, which are of another kind."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 1024, 512, generator=generator)
    weights[:, :, :32] = 1.0
    for format in ("mxfp4", "nvfp4"):
        errors = relative_rmse(torch.from_numpy(dequantize(quantize(weights, format))), weights)
        assert expected_rmse(weights, format, 0) == pytest.approx(errors, abs=0.004)


def test_an_expert_of_zeros_is_no_outlier() -> None:
    zeros = torch.zeros(1, 8, 64)
    assert relative_rmse(zeros, zeros) == expected_rmse(zeros, "mxfp4", 0) == [0.0]


def test_golden_tokens_are_the_most_likely_ones_whatever_the_generation_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An end of text among them, or a penalty of repetition, would make others of those that every run predicts."""
    expected = Golden.load(GOLDEN, reference())
    settings = reference().module.generation_config
    monkeypatch.setattr(settings, "repetition_penalty", 1.5)
    monkeypatch.setattr(settings, "eos_token_id", expected.tokens[5])
    made = make_golden(reference())
    assert made.tokens == expected.tokens
    assert made.margins == pytest.approx(expected.margins, abs=1e-3)
    ids = torch.from_numpy(made.sequence()[None])
    with torch.inference_mode():
        logits = reference().module(input_ids=ids, use_cache=False).logits[0].float().numpy()
    assert made.judge(logits) == GoldenResult(len(made.tokens), len(made.tokens), ())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"prompt": 1}', "margins"])
def test_a_file_without_golden_tokens_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    if text == "margins":
        replace(GOLD, config_hash=config_hash(reference()), margins=(1.0,)).save(path)
    else:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidModelError, match="holds no golden tokens"):
        Golden.load(path, reference())


def test_golden_tokens_of_another_model_are_refused(tmp_path: Path) -> None:
    GOLD.save(tmp_path / "golden.json")
    with pytest.raises(InvalidModelError, match="of another model than the reference"):
        Golden.load(tmp_path / "golden.json", reference())


def test_windows_fit_the_context_and_hold_what_routing_is_compared_on() -> None:
    def model(context: int) -> Any:
        return SimpleNamespace(module=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=context)))

    fitted = measurement_for(model(256), Measurement())
    assert (fitted.sizes, fitted.text_tokens) == (((1, 32), (128, 4)), 256)
    with pytest.raises(InvalidInputError, match=r"windows of 128 tokens, .* the model's context is 64"):
        measurement_for(model(64), Measurement())
    with pytest.raises(InvalidInputError, match=r"the sizes are \[1, 512\]"):
        measurement_for(model(1024), Measurement(sizes=((1, 8), (512, 1))))


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for content in (None, b"\xff\xfe"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"text.txt cannot be read: .* Give a text file in UTF-8"):
            Measurement(path).read_text()


def test_a_reference_serves_models_with_and_without_folded_shared_experts(tmp_path: Path) -> None:
    """Shared experts that were exported as ordinary operators are no part of that model's layers, but of others'."""
    whole = [layer.shared for layer in reference().layers]
    assert None not in whole
    few = Measurement(sizes=((128, 1),), text_windows=2, text_tokens=64)
    golden = Golden.load(GOLDEN, reference())
    for fold in (False, True):
        path = export(tmp_path / f"{fold}.onnx", fold_shared_experts=fold)
        (text, _) = measure(path, reference(), few, golden).workloads
        assert all(layer.arithmetic_error < 1e-5 and layer.relative_error < 0.25 for layer in text.layers)
        assert [layer.shared for layer in reference().layers] == whole


def test_what_a_page_needs_is_asked_for_before_anything_is_measured(
    command_error: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in command_error(["accuracy", "no.onnx", "--html", str(tmp_path / "page.html")])


def test_a_file_that_is_no_model_is_named(command_error: Callable[[list[str]], str], tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"no model")
    assert "damaged.onnx is not an ONNX model" in command_error(["accuracy", str(path)])
