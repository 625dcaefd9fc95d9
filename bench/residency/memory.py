"""Limiting and watching the memory of a process."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def resident_bytes(process: int) -> int:
    """All pages of the process that are in memory: its own, and those of files that it maps."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * mmap.PAGESIZE


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[Path]:
    """A control group that gives its processes, and the page cache of what they read, at most `limit` bytes.

    A process joins by writing its number into the file cgroup.procs of the folder. OSError without the right to.
    """
    folder, limit_file = _parent_group()
    group = folder / f"onnx-moe-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit_file).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def _parent_group() -> tuple[Path, str]:
    """The folder of this process's group that limits memory, of control groups 1 or 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
    return _ROOT / Path("/proc/self/cgroup").read_text().split("::", 1)[1].strip().lstrip("/"), "memory.max"


class Watch:
    """Samples the memory of a process every few milliseconds, until it ends."""

    PERIOD = 0.01

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak = 0
        self.samples = 0
        self._thread.start()

    def _sample(self) -> None:
        while self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
                self.peak = max(self.peak, resident_bytes(self._process.pid))
                self.samples += 1
            threading.Event().wait(self.PERIOD)

    def result(self) -> int:
        """The most that it was; once the process has ended."""
        self._thread.join()
        return self.peak
