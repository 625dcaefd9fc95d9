"""Writing shards: one pass over the source, jobs on every core, memory bounded, finished shards kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnx_moe.export.checkpoint.files import CheckpointFiles
from onnx_moe.export.checkpoint.journal import Journal, WrittenShard, file_digest
from onnx_moe.export.checkpoint.plan import Plan, Shard
from onnx_moe.export.checkpoint.units import Job

#: Bytes that all running jobs may hold together. Larger jobs run alone.
_MEMORY = 1 << 30

#: Called with the bytes of the source that are done with.
Advance = Callable[[int], None]


class _MemoryGate:
    """Lets jobs start while what they hold together stays below a bound."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + nbytes <= self._limit)
            self._used += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._used -= nbytes
                self._changed.notify_all()


def write_shards(plan: Plan, folder: Path, files: CheckpointFiles, journal: Journal, advance: Advance) -> int:
    """Writes the shards of `plan` into `folder` but for those that `journal` has and that are what it says; enters them
    there. Returns the bytes of those that were kept.

    Raises what a job raises; shards that were finished before stay and are known to the journal.
    """
    kept = 0
    workers = (os.cpu_count() or 1) + 1  # one of them waits for the disk
    gate = _MemoryGate(_MEMORY)
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as finisher:
        finishing: list[Future[None]] = []
        for shard in plan.shards:
            if shard.name in journal.shards and journal.verified(shard.name):
                files.digests.update(journal.shards[shard.name].source_digests)
                advance(sum(job.source_bytes for unit in shard.units for job in unit.jobs()))
                kept += shard.nbytes
                continue
            before = set(files.digests)
            _write_shard(shard, folder / shard.name, pool, gate, advance)
            digests = {name: value for name, value in files.digests.items() if name not in before}
            finishing.append(finisher.submit(_finish, folder / shard.name, shard.name, digests, journal))
        for future in finishing:
            future.result()
    return kept


def _finish(path: Path, name: str, source_digests: dict[str, str], journal: Journal) -> None:
    """Puts a shard onto the disk and enters it, while the next one is written."""
    sync(path)
    journal.add(name, WrittenShard(path.stat().st_size, file_digest(path), source_digests))


def sync(path: Path) -> None:
    """Returns when what was written to a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_shard(shard: Shard, path: Path, pool: ThreadPoolExecutor, gate: _MemoryGate, advance: Advance) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, shard.nbytes)  # a full disk is known now
        else:
            os.ftruncate(descriptor, shard.nbytes)

        def write(name: str, offset: int, data: np.ndarray[Any, Any]) -> None:
            _write_fully(descriptor, data.reshape(-1).view(np.uint8).data, shard.places[name].offset + offset)

        def run(job: Job) -> None:
            with gate.hold(job.memory_bytes):
                job.run(write)
            advance(job.source_bytes)

        jobs = [pool.submit(run, job) for unit in shard.units for job in unit.jobs()]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
            for job in jobs:
                if not job.cancelled():
                    job.exception()  # the file must not be closed under those that still run
    finally:
        os.close(descriptor)


def _write_fully(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
