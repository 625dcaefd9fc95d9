"""What running jobs hold together stays below a bound, however many cores there are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
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
    advanced: list[int] = []
    assert _write([unit], tmp_path, advanced.append) == 0
    assert len(unit.states) == len(advanced) == 40
    assert all(held <= 100 or running == 1 for running, held in unit.states)
    assert max(running for running, _ in unit.states) > 1


class Works:
    """A unit of one output, a page, and a job for each of `works`."""

    def __init__(self, name: str, *works: Callable[[Write], None]) -> None:
        self.position = (name, 0)
        self.outputs = (Output(name, torch.uint8, (ALIGNMENT,)),)
        self._works = works

    def jobs(self) -> Iterator[Job]:
        return (Job(1, 1, work) for work in self._works)


def _write(units: list[Any], folder: Path, advance: Callable[[int], None] = lambda _: None) -> int:
    files: Any = SimpleNamespace(digests={}, buffers=BufferPool())
    return writer.write_shards(make_plan(units, ALIGNMENT), folder, files, Journal(folder, ""), advance)


def test_a_shard_begins_while_the_last_jobs_of_another_run(tmp_path: Path) -> None:
    began = threading.Event()

    def wait(_write: Write) -> None:
        assert began.wait(30)

    _write([Works("first", wait), Works("second", lambda _: began.set())], tmp_path)
    assert len(list(tmp_path.glob("*-of-00002"))) == 2


def test_no_file_is_closed_under_a_job(tmp_path: Path) -> None:
    running, written = threading.Event(), []

    def late(write: Write) -> None:
        running.set()
        time.sleep(0.2)
        write("unit", 0, np.zeros(ALIGNMENT, np.uint8))
        written.append(True)

    def fail(_write: Write) -> None:
        assert running.wait(30)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _write([Works("unit", fail, late)], tmp_path)
    assert written
