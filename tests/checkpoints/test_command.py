"""`onnx-moe export` of a checkpoint: what it prints, and how it fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnx_moe.cli import app
from onnx_moe.export.checkpoint import api as checkpoint_api

from .folders import write_checkpoint
from .weights_only import graph_of_weights


def test_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_api, "trace_model", graph_of_weights)
    write_checkpoint(tmp_path / "checkpoint")
    arguments = ["export", str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--shard-size", "150kB"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "writing the model" in result.output  # the progress's last stage
    assert re.search(r"\d+\.\d kB became \d+\.\d kB\.", result.output)
    assert "note: no genai_config.json: onnxruntime-genai needs a layer of attention" in result.output
    assert not (tmp_path / "out" / "genai_config.json").exists()
    assert len(list((tmp_path / "out").glob("model.onnx.data-*"))) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "absent/folder/of/mine", "out"], "does not exist: give a checkpoint's folder"),
        (["export", "module:build", "model.onnx", "--shard-size", "1GB"], "--shard-size is for checkpoints"),
        (["export", "module:build", "model.onnx", "--dtype", "float16"], "--dtype is for checkpoints"),
        (["export", "some/model", "out", "--shard-size", "many"], "shard size is 'many': use a number of bytes"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, command_error: Callable[[list[str]], str]) -> None:
    assert message in command_error(arguments)
