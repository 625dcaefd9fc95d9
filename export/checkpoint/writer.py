"""Writing shards: one pass over the source, jobs on every core, memory bounded, finished shards kept."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
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
    files.digests.update(journal.source_digests)
    kept = 0
    workers = (os.cpu_count() or 1) + 3  # so many wait for the disk, or for the one that reads
    with (
        _one_torch_thread(),
        ThreadPoolExecutor(1) as finisher,
        ThreadPoolExecutor(workers, initializer=use_one_core) as pool,
        closing(_ShardWriter(pool, finisher, files, journal, advance)) as writer,
    ):
        for shard in plan.shards:
            if journal.verified(shard.name):
                advance(sum(job.source_bytes for unit in shard.units for job in unit.jobs()))
                kept += shard.nbytes
            else:
                writer.write(shard, folder / shard.name)
        writer.finish()
    return kept


@dataclass
class _OpenShard:
    """A shard whose jobs are queued, run or have run."""

    file: ShardFile
    jobs: list[Future[None]]

    def cancel(self) -> None:
        for job in self.jobs:
            job.cancel()
        wait(self.jobs)  # the file must not be closed under those that still run
        self.file.close()


class _ShardWriter:
    """Writes one shard after the other; while the last jobs of one run, the next one's begin."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        finisher: ThreadPoolExecutor,
        files: CheckpointFiles,
        journal: Journal,
        advance: Advance,
    ) -> None:
        self._pool, self._finisher = pool, finisher
        self._files, self._journal, self._advance = files, journal, advance
        self._gate = _MemoryGate(_MEMORY)
        self._open: deque[_OpenShard] = deque()
        self._finishing: list[Future[None]] = []

    def write(self, shard: Shard, path: Path) -> None:
        """Queues the jobs of `shard` and waits for those of the shard before. Raises what they raise."""
        file = ShardFile(path, shard, self._files.buffers)
        jobs = [self._pool.submit(self._run, job, file) for unit in shard.units for job in unit.jobs()]
        self._open.append(_OpenShard(file, jobs))
        if len(self._open) > 1:
            self._complete_first()

    def finish(self) -> None:
        """Returns when all is on the disk and in the journal."""
        while self._open:
            self._complete_first()
        for future in self._finishing:
            future.result()

    def close(self) -> None:
        """Gives up what is not finished."""
        while self._open:
            self._open.popleft().cancel()

    def _run(self, job: Job, file: ShardFile) -> None:
        with self._gate.hold(job.memory_bytes):
            job.run(file.write)
        self._advance(job.source_bytes)

    def _complete_first(self) -> None:
        for job in self._open[0].jobs:
            job.result()
        self._finishing.append(self._finisher.submit(self._put_on_disk, self._open.popleft().file))

    def _put_on_disk(self, file: ShardFile) -> None:
        """Enters a shard in the journal once it is on the disk, while the next one is written."""
        try:
            written = WrittenShard(file.nbytes, file.finish())
            self._journal.add(file.path.name, written, self._files.digests.copy())
        finally:
            file.close()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Lets no operation of Torch start threads: there is a job for each core already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
