"""The command's own behaviour: what it prints, and how it fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

import onnx_moe
from onnx_moe import _native
from onnx_moe.cli import app
from onnx_moe.nn import SparseMoE

BUILDER = """
import torch
from onnx_moe.nn import SparseMoE

def build():
    torch.manual_seed(0)
    return SparseMoE(64, 32, 8, 2, num_shared_experts=1), (torch.randn(5, 64),)

def wrong():
    return 3
"""


def _invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def builder_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny_builder.py").write_text(BUILDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_export_then_inspect(builder_folder: Path) -> None:
    output = _invoke("export", "tiny_builder:build", "model.onnx", "--format", "nvfp4")
    assert re.search(r"experts\s+│ 8\s+│ 2\s+│ 1\s+│ 64 × 32\s+│ softmax", output)
    output = _invoke("inspect", "model.onnx")
    assert re.search(r"experts\.up\s+│ MoEExpertGemmFP4 │\s+9 │ 3 │\s+64 → 64 │ nvfp4 \(block 16\)", output)
    # 9 experts of 64 × 64 and 64 × 32 codes, half a byte each, a scale for 16, and float global scales; the router.
    products = 9 * (64 * 64 + 64 * 32) // 2 + 9 * (64 * 64 + 64 * 32) // 16 + 2 * 9 * 4
    assert f"{(products + 8 * 64 * 4) / 1e3:.1f} kB" in output
    assert f"plugin, kernel {_native.current_kernel()}" in output


def test_inspect_says_when_nobody_would_run_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SparseMoE(32, 32, 4, 1)
    onnx_moe.export(layer, (torch.randn(2, 32),), tmp_path / "bare.onnx", functions=False)
    onnx_moe.export(layer, (torch.randn(2, 32),), tmp_path / "portable.onnx")
    monkeypatch.setattr(_native, "LIBRARY_NAME", "absent.so")
    _native.library.cache_clear()
    try:
        assert "nobody: the model carries no portable bodies" in _invoke("inspect", str(tmp_path / "bare.onnx"))
        assert "portable bodies on stock ONNX Runtime" in _invoke("inspect", str(tmp_path / "portable.onnx"))
    finally:
        monkeypatch.undo()
        _native.library.cache_clear()


def test_inspect_of_a_model_without_moe_nodes(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "empty.onnx")
    assert "holds no MoE nodes" in _invoke("inspect", str(tmp_path / "empty.onnx"))


def test_doctor_runs_every_kernel() -> None:
    output = _invoke("doctor")
    for name in _native.kernel_names():
        assert re.search(rf"kernel {name}\s+(in use|available), computes correctly", output)
    assert re.search(r"Metal device\s+\w+", output)
    assert "No problems" in output


def test_doctor_names_the_problem_and_the_remedy() -> None:
    with _native.use_kernel("reference"):
        result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "problem: The portable kernel is in use" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent.onnx"], "absent.onnx is not a file"),
        (["inspect", "tiny_builder.py"], "tiny_builder.py is not an ONNX model"),
        (["export", "tiny_builder", "model.onnx"], "write module:callable"),
        (["export", "tiny_builder:absent", "model.onnx"], "cannot be loaded"),
        (["export", "tiny_builder:wrong", "model.onnx"], "returns a int: return (module, example_inputs)"),
        (["export", "tiny_builder:build", "model.txt"], "does not end in .onnx"),
        (["export", "tiny_builder:build", "model.onnx", "--format", "fp8"], "format='fp8' is unknown"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line(
    builder_folder: Path, arguments: list[str], message: str, command_error: Callable[[list[str]], str]
) -> None:
    assert message in command_error(arguments)


def test_help_names_every_command() -> None:
    output = _invoke("--help")
    for command in ("demo", "export", "convert", "inspect", "doctor"):
        assert re.search(rf"\b{command}\b", output)
