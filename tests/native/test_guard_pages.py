"""No kernel reads or writes beside its buffers; in a process of its own, because one that did would die."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnx_moe import _native


@pytest.mark.parametrize("kernel", _native.kernel_names())
@pytest.mark.parametrize("program", ["native.guarded", "native.guarded_codec"])
def test_kernels_stay_inside_their_buffers(kernel: str, program: str) -> None:
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", program, kernel]
    result = subprocess.run(command, cwd=tests, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"exit status {result.returncode} (-11 is a fault)\n{result.stderr}"
    assert "cases" in result.stdout
