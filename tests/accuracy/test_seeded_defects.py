"""Tests of the accuracy suite: planted mistakes break the checks made for them, a good model none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from onnx_moe.accuracy import Golden, check, measure

from .defects import (
    Edit,
    correction_bias_ignored,
    gate_and_up_swapped,
    plant,
    subnormal_decoded_as_a_quarter,
    wrong_scale_of_one_expert,
)
from .fixture import GOLDEN, QUICK, export, reference


def stock_session(model: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """On ONNX Runtime without the plugin: the model's portable bodies compute."""
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


#: Less text than the suite's own tests take: a defect is seen in a few windows.
FAST = replace(QUICK, sizes=((1, 8), (128, 2)), text_windows=4)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("good") / "tiny-glm.onnx")


def broken_checks(path: Path, stock: bool = False) -> set[str]:
    measurement = replace(FAST, make_session=stock_session) if stock else FAST
    report = measure(path, reference(), measurement, Golden.load(GOLDEN, reference()))
    return {finding.name for finding in check(report) if not finding.good}


#: Intervals over four windows are wide; all else must hold on them too.
_OF_TEXT = {"perplexity (seed)", "perplexity", "KL divergence"}


@pytest.mark.parametrize("stock", [False, True], ids=["plugin", "portable bodies"])
def test_a_good_model_breaks_nothing(good: Path, stock: bool) -> None:
    assert broken_checks(good, stock) <= _OF_TEXT


@pytest.mark.parametrize(
    ("edit", "stock", "expected"),
    [
        (wrong_scale_of_one_expert, False, {"expert weights"}),
        (gate_and_up_swapped, False, {"expert weights", "layer FP4 error", "perplexity"}),
        (correction_bias_ignored, False, {"router agreement"}),
        (subnormal_decoded_as_a_quarter, True, {"layer arithmetic"}),
    ],
)
def test_a_defect_is_found(good: Path, tmp_path: Path, edit: Edit, stock: bool, expected: set[str]) -> None:
    assert expected <= broken_checks(plant(good, tmp_path, edit), stock)
