"""The accuracy of the trained model that ships, exported to mxfp4: every check by its name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from accuracy.fixture import GOLDEN, QUICK, export, reference

from onnx_moe.accuracy import AccuracyReport, Finding, Golden, check, measure
from onnx_moe.accuracy.html import write_html
from onnx_moe.accuracy.report import Interval

#: Checks of `onnx_moe.accuracy.check`.
NAMES = (
    "layer MSE (seed)",
    "layer error",
    "hidden states",
    "layer FP4 error",
    "layer arithmetic",
    "router agreement",
    "routing overlap",
    "routing diversity (seed)",
    "routing diversity",
    "expert weights",
    "perplexity (seed)",
    "perplexity",
    "KL divergence",
    "top-1 agreement",
    "golden tokens",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> AccuracyReport:
    path = export(tmp_path_factory.mktemp("accuracy") / "tiny-glm.onnx")
    return measure(path, reference(), QUICK, Golden.load(GOLDEN, reference()))


@pytest.fixture(scope="module")
def findings(report: AccuracyReport) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(report)}


@pytest.mark.parametrize("name", NAMES)
def test_check(findings: dict[str, Finding], name: str) -> None:
    assert findings[name].good, str(findings[name])


def test_every_check_has_a_test(findings: dict[str, Finding]) -> None:
    assert set(findings) == set(NAMES)


def test_layers_are_compared_at_1_128_and_2048_tokens(report: AccuracyReport) -> None:
    assert [workload.tokens for workload in report.workloads] == [1, 128, 2048, 128]
    for workload in report.workloads:
        assert [layer.layer.split(".")[-3] for layer in workload.layers] == ["1", "2", "3"]
        assert all(0 < layer.relative_error < 1 and layer.fp4_error > 0 for layer in workload.layers)


def test_fp4_does_have_an_effect(report: AccuracyReport) -> None:
    """Otherwise the reference was compared with itself, and no limit could be broken."""
    assert report.text.kl_divergence.low > 1e-3
    assert report.text.top1_agreement < 0.999
    assert min(error for part in report.experts for error in part.relative_rmse) > 0.05


def test_experts_are_all_there(report: AccuracyReport) -> None:
    assert len(report.experts) == 6
    assert all(len(part.relative_rmse) == len(part.expected) == 65 for part in report.experts)


def test_json_and_page(report: AccuracyReport, findings: dict[str, Finding], tmp_path: Path) -> None:
    fields = json.loads(report.to_json())
    assert fields["text"]["perplexity"] == report.text.perplexity
    assert len(fields["workloads"][2]["layers"]) == 3
    write_html(report, list(findings.values()), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page
    assert "https://" not in page
    assert all(name in page for name in NAMES)


def test_interval_covers_the_mean() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        interval = Interval.of(list(random.normal(3.0, 2.0, 40)))
        covered += interval.low <= 3.0 <= interval.high
    assert 925 <= covered <= 970  # 950 expected, 7 the standard deviation; 1.96 is a little narrow for 40 values
