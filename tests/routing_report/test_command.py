"""`onnx-moe plan --report`: the page at a machine's budget and disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnx_moe.cli import app
from onnx_moe.routing import profile_trace, save_trace
from tests.routing_report.raw_trace import EXPERTS, LAYERS, trace
from tests.routing_report.test_page import Elements


@pytest.mark.parametrize("source", ["trace", "profile"])
def test_plan_writes_a_report(tmp_path: Path, source: str) -> None:
    path, report = tmp_path / "routing.npz", tmp_path / "plan.html"
    if source == "trace":
        save_trace(trace(), path)
    else:
        profile_trace(trace(), name="saved").save(path)
    # 33 experts of 1 MB; the budget holds 20 of them.
    machine = ["--memory", "20MB", "--disk-bandwidth", "1.3GB/s", "--expert-bytes", "1MB", "--compute-rate", "40"]
    result = CliRunner().invoke(app, ["plan", str(path), *machine, "--report", str(report)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "plan.html" in result.output
    page = Elements(report.read_text())
    values = {attributes.get("id"): attributes.get("value") for tag, attributes in page.elements if tag == "input"}
    assert values == {"budget": "60", "bandwidth": "1.3", "computing": "25"}
    document = json.loads(page.scripts["profile"])
    assert document["cache"]["bank_bytes"] == LAYERS * EXPERTS * 1_000_000
    assert document["model"]["name"] == ("routing" if source == "trace" else "saved")
