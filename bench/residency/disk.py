"""What the disk gives to reads as the expert cache makes them."""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench.residency.model import Shape

#: Readers that wait for nothing but the disk, as many as the engine has by default.
READERS = 4
_HUGE = 2 << 20


def bandwidth(path: Path, shape: Shape, seconds: float) -> float:
    """Bytes a second of direct reads of the parts of random experts, each part one read, by READERS at once.

    Nothing is computed and nobody waits for another's read: the most that the engine could get.
    """
    pages = path.stat().st_size // mmap.PAGESIZE
    parts = [-(-rows * row_bytes // mmap.PAGESIZE) for rows, row_bytes in shape.parts.values()]
    deadline = time.perf_counter() + seconds

    def read(seed: int) -> int:
        random = np.random.default_rng(seed)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        total = 0
        with mmap.mmap(-1, -(-max(parts) * mmap.PAGESIZE // _HUGE) * _HUGE) as buffer, memoryview(buffer) as memory:
            buffer.madvise(mmap.MADV_HUGEPAGE)  # as the engine's slots
            while time.perf_counter() < deadline:
                for part in parts:
                    with memory[: part * mmap.PAGESIZE] as target:
                        offset = int(random.integers(pages - part)) * mmap.PAGESIZE
                        total += os.preadv(descriptor, [target], offset)
        os.close(descriptor)
        return total

    seeds = np.random.SeedSequence().generate_state(READERS).tolist()
    start = time.perf_counter()
    with ThreadPoolExecutor(READERS) as readers:
        total = sum(readers.map(read, seeds))
    return total / (time.perf_counter() - start)
