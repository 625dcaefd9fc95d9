"""What every test runs under."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# For `metal` and `bench`, which are not installed. Last, so that the installed onnx_moe is found before its sources.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# Two test processes share two cores: more threads than one each would only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def command_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs `onnx-moe` with arguments that it must refuse; what it says, which is one line."""

    def run(arguments: list[str]) -> str:
        from onnx_moe import cli

        monkeypatch.setattr("sys.argv", ["onnx-moe", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return run
