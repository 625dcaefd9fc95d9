"""Writing shards: one pass over the source, jobs on every core, memory bounded, finished shards kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import torch

from onnx_moe.export.checkpoint.files import CheckpointFiles
from onnx_moe.export.checkpoint.journal import Journal, WrittenShard
from onnx_moe.export.checkpoint.plan import Plan, Shard
from onnx_moe.export.checkpoint.shard_file import ShardFile
from onnx_moe.export.checkpoint.units import Job
from onnx_moe.quantization import use_one_core

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
    workers = (os.cpu_count() or 1) + 2  # one of them waits for the disk to read, one to write
    gate = _MemoryGate(_MEMORY)
    with (
        _one_torch_thread(),
        ThreadPoolExecutor(workers, initializer=use_one_core) as pool,
        ThreadPoolExecutor(1) as finisher,
    ):
        finishing: list[Future[None]] = []
        for shard in plan.shards:
            if shard.name in journal.shards and journal.verified(shard.name):
                files.digests.update(journal.shards[shard.name].source_digests)
                advance(sum(job.source_bytes for unit in shard.units for job in unit.jobs()))
                kept += shard.nbytes
                continue
            before = set(files.digests)
            file = _write_shard(shard, folder / shard.name, pool, gate, advance)
            digests = {name: value for name, value in files.digests.items() if name not in before}
            finishing.append(finisher.submit(_finish, file, digests, journal))
        for future in finishing:
            future.result()
    return kept


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Lets no operation of Torch start threads: there is a job for each core already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _finish(file: ShardFile, source_digests: dict[str, str], journal: Journal) -> None:
    """Puts a shard onto the disk and enters it, while the next one is written."""
    try:
        journal.add(file.path.name, WrittenShard(file.nbytes, file.finish(), source_digests))
    finally:
        file.close()


def _write_shard(shard: Shard, path: Path, pool: ThreadPoolExecutor, gate: _MemoryGate, advance: Advance) -> ShardFile:
    file = ShardFile(path, shard)

    def run(job: Job) -> None:
        with gate.hold(job.memory_bytes):
            job.run(file.write)
        advance(job.source_bytes)

    jobs = [pool.submit(run, job) for unit in shard.units for job in unit.jobs()]
    try:
        for job in jobs:
            job.result()
    except BaseException:
        for job in jobs:
            job.cancel()
        wait(jobs)  # the file must not be closed under those that still run
        file.close()
        raise
    return file
