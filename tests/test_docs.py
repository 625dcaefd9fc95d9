"""What the documents say is so: examples run, generated pages are current, named files exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_moe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _example(kind: str) -> str:
    match = re.search(rf"<!-- test: {kind} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match, f"README.md has no {kind} example"
    return match[1]


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_python_example(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(_example("python"), encoding="utf-8")
    output = _run([sys.executable, "example.py"], tmp_path)
    error = float(output.rpartition(":")[2])
    # Each projection's weights carry MXFP4's 11.5 % on Gaussian weights; three of them meet in one output.
    assert 0.05 < error < 0.3
    assert (tmp_path / "layer.onnx.data").exists()


def test_cpp_example(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on the PATH")
    library = onnx_moe.library_path()
    (tmp_path / "example.cpp").write_text(_example("cpp"), encoding="utf-8")
    include = f"-I{ROOT / 'ops' / 'include'}"
    link = [f"-L{library.parent}", "-lonnx_moe", f"-Wl,-rpath,{library.parent}"]
    _run([compiler, "-std=c++17", "-Wall", "-Werror", include, "example.cpp", *link, "-o", "example"], tmp_path)
    assert "1.5 became 1.5" in _run([str(tmp_path / "example")], tmp_path)


def test_operator_reference_is_current() -> None:
    _run([sys.executable, "tools/write_operator_docs.py", "--check"], ROOT)


def test_ci_runs_the_readmes_commands() -> None:
    commands = re.findall(r"^(pip install .*?)\s+#", README, re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert len(commands) == 2
    for command in commands:
        assert command.replace("pip install", "pip install --quiet") in script


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/test-map.md"])
def test_named_files_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:ops|export|onnx_moe|tests|tools|docs)/[\w./-]+)`", text))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", text))
    folder = (ROOT / document).parent
    missing = {name for name in named if not (ROOT / name).exists() and not (folder / name).exists()}
    assert not missing
