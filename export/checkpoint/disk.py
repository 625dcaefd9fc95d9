"""Reading and writing files that are larger than memory, and their digests.

Nothing is read or written twice, so it would only fill the system's cache, at the price of what else lies there and of
fresh pages: on a virtual machine whose host has to find each of those, copying into the cache costs more than
quantising (docs/checkpoints.md). Reads pass the cache by, and what is written leaves it as soon as it is on the disk.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from onnx_moe.export.checkpoint.buffers import BufferPool

#: Bytes that are read at once, hashed and copied on.
_STAGING_BYTES = 4 << 20
#: Positions, sizes and memory of reads that pass the cache by are multiples of this.
_SECTOR = 4096
#: Bytes of a written file that are hashed at a time: they stay in the processor's cache from the copy to the digest.
_BLOCK = 1 << 20
#: How far behind its digest a file leaves the cache, tried again and again: what the disk has not taken yet cannot.
_WINDOW = 32 << 20


def bytes_digest(data: bytes) -> str:
    """XXH3 (128 bits) of `data`, as hexadecimal digits: it tells damage from health, not friend from foe."""
    return xxh3_128(data).hexdigest()


class UncachedReader:
    """Reads files past the system's cache, where the system can. For several threads; close it at the end."""

    def __init__(self, buffers: BufferPool) -> None:
        self._buffers = buffers
        self._descriptors: dict[Path, int] = {}
        # One read at a time: with several, all threads wait for the disk together, and then compute together.
        self._reading = threading.Lock()

    def read(self, file: Path, offset: int, buffer: NDArray[np.uint8]) -> str | None:
        """Fills `buffer` with what lies from `offset` on. Returns its digest; None where the file ends before."""
        staging = self._buffers.take(_STAGING_BYTES)
        hashed, done = xxh3_128(), 0
        while done < len(buffer):
            skipped = (offset + done) % _SECTOR
            wanted = min(_STAGING_BYTES, -(-(skipped + len(buffer) - done) // _SECTOR) * _SECTOR)
            with self._reading:
                count = os.preadv(self._descriptor(file), [staging[:wanted].data], offset + done - skipped)
            part = staging[skipped : min(count, skipped + len(buffer) - done)]
            if len(part) == 0:
                return None
            hashed.update(part.data)
            buffer[done : done + len(part)] = part  # numpy lets other threads run meanwhile
            done += len(part)
        return hashed.hexdigest()

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = open_uncached(file)
        return self._descriptors[file]

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def open_uncached(file: Path) -> int:
    """A descriptor whose reads, of whole sectors into memory that begins with one, pass the system's cache by."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return os.open(file, os.O_RDONLY | direct)
    except OSError:
        return os.open(file, os.O_RDONLY)  # a file system without


def write_fully(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def sync(path: Path) -> None:
    """Returns when what was written to a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileDigest:
    """XXH3 of a file, from its beginning on, while it grows; what was hashed leaves the system's cache."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = xxh3_128()
        self._block = memoryview(bytearray(_BLOCK))
        #: Bytes that have been hashed.
        self.nbytes = 0

    def advance(self, end: int) -> None:
        """Hashes what lies before `end` and was not hashed yet, or all that there is, if the file is shorter."""
        while self.nbytes < end:
            part = self._block[: end - self.nbytes]
            count = os.preadv(self._descriptor, [part], self.nbytes)
            if count == 0:
                break
            self._digest.update(part[:count])
            self.nbytes += count
            first = max(0, self.nbytes - _WINDOW)
            drop_cached(self._descriptor, first, self.nbytes - first)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def file_digest(path: Path) -> str:
    """XXH3 of a file, as hexadecimal digits: what the program `xxhsum -H2` prints."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        hashed = FileDigest(descriptor)
        hashed.advance(os.fstat(descriptor).st_size)
        return hashed.hexdigest()
    finally:
        os.close(descriptor)


def drop_cached(descriptor: int, offset: int, nbytes: int) -> None:
    """Takes a part of a file out of the system's cache, but for what the disk does not have yet."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)
