"""What running jobs hold together stays below a bound, however many cores there are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onnx_moe.export.checkpoint import writer
from onnx_moe.export.checkpoint.buffers import BufferPool
from onnx_moe.export.checkpoint.journal import Journal
from onnx_moe.export.checkpoint.plan import make_plan
from onnx_moe.export.checkpoint.units import Job, Output, Write
from onnx_moe.export.finish import ALIGNMENT


class Jobs:
    """A unit whose jobs hold `sizes` bytes, and what they held together at each one's start."""

    position = ("", 0)

    def __init__(self, sizes: list[int]) -> None:
        self.outputs = (Output("weights", torch.uint8, (ALIGNMENT,)),)
        self.states: list[tuple[int, int]] = []
        self._sizes = sizes
        self._running: list[int] = []
        self._lock = threading.Lock()

    def jobs(self) -> Iterator[Job]:
        for size in self._sizes:
            yield Job(1, size, self._job(size))

    def _job(self, size: int) -> Callable[[Write], None]:
        def run(_write: Write) -> None:
            with self._lock:
                self._running.append(size)
                self.states.append((len(self._running), sum(self._running)))
            time.sleep(0.002)
            with self._lock:
                self._running.remove(size)

        return run


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_MEMORY", 100)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    unit = Jobs([60, 40, 30, 150, 30, 60, 10, 90] * 5)
    files: Any = SimpleNamespace(digests={}, buffers=BufferPool())
    advanced: list[int] = []
    assert writer.write_shards(make_plan([unit], 1 << 20), tmp_path, files, Journal(tmp_path, ""), advanced.append) == 0
    assert len(unit.states) == len(advanced) == 40
    assert all(held <= 100 or running == 1 for running, held in unit.states)
    assert max(running for running, _ in unit.states) > 1
