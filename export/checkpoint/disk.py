"""Reading and writing files that are larger than memory, and their digests.

Nothing is read or written twice, so it would only fill the system's cache, at the price of what else lies there and of
fresh pages: on a virtual machine whose host has to find each of those, copying into the cache costs more than
quantising (docs/checkpoints.md). Large transfers pass the cache by.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from onnx_moe.export.checkpoint.buffers import BufferPool, rounded_up

#: Positions, sizes and memory of transfers that pass the cache by are multiples of this.
_SECTOR = 4096
#: Bytes that are read at once.
_BLOCK = 16 << 20
#: Bytes that are read and hashed at a time: they stay in the processor's cache from the one to the other.
_HASHED_BLOCK = 1 << 20
#: Writes of fewer whole sectors go through the cache: each of them would wait for the disk.
_SMALLEST_WRITE = 64 << 10


def bytes_digest(data: bytes | memoryview) -> str:
    """XXH3 (128 bits) of `data`, as hexadecimal digits: it tells damage from health, not friend from foe."""
    return xxh3_128(data).hexdigest()


class UncachedReader:
    """Reads files past the system's cache, where the system can. For several threads; close it at the end."""

    def __init__(self, buffers: BufferPool) -> None:
        self._buffers = buffers
        self._descriptors: dict[Path, int] = {}
        # One read at a time: with several, all threads wait for the disk together, and then compute together.
        self._reading = threading.Lock()

    def read(self, file: Path, offset: int, nbytes: int) -> NDArray[np.uint8] | None:
        """`nbytes` from `offset` on, in memory of their own; None where the file ends before."""
        skipped = offset % _SECTOR
        sectors = self._buffers.take(rounded_up(skipped + nbytes, _SECTOR))
        done = 0
        while done < skipped + nbytes:
            with self._reading:
                count = os.preadv(self._descriptor(file), [sectors[done : done + _BLOCK].data], offset - skipped + done)
            if count < min(_BLOCK, skipped + nbytes - done):
                return None
            done += count
        return sectors[skipped : skipped + nbytes]

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = open_uncached(file, os.O_RDONLY)
        return self._descriptors[file]

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


class UncachedWriter:
    """Writes a new file, large parts past the system's cache, where the system can. For several threads."""

    def __init__(self, path: Path, nbytes: int, buffers: BufferPool) -> None:
        """Makes the file `path` with room for `nbytes`. Raises OSError, also for a disk that is too small."""
        self._buffers = buffers
        self._cached = self._uncached = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            self._uncached = open_uncached(path, os.O_RDWR)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._cached, 0, nbytes)
            else:
                os.ftruncate(self._cached, nbytes)
        except OSError:
            self.close()
            raise

    def write(self, data: NDArray[np.uint8], offset: int) -> bool:
        """Puts `data` at `offset`. Returns whether the system's cache has it now."""
        first, last = rounded_up(offset, _SECTOR) - offset, len(data) - (offset + len(data)) % _SECTOR
        if last - first < _SMALLEST_WRITE:
            _write_fully(self._cached, data, offset)
            return True
        _write_fully(self._cached, data[:first], offset)
        _write_fully(self._uncached, self._aligned(data[first:last]), offset + first)
        _write_fully(self._cached, data[last:], offset + last)
        return False

    def _aligned(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if data.ctypes.data % _SECTOR == 0:
            return data
        copy = self._buffers.take(len(data))
        copy[:] = data
        return copy

    def digest(self) -> FileDigest:
        """The digest of this file, of nothing yet."""
        return FileDigest(self._cached)

    def sync(self) -> None:
        """Returns when all is on the disk; nothing stays in the cache."""
        os.fsync(self._cached)
        drop_cached(self._cached)

    def close(self) -> None:
        for descriptor in {self._cached, self._uncached}:
            os.close(descriptor)


def open_uncached(path: Path, flags: int) -> int:
    """A descriptor whose transfers, of whole sectors from and to memory that begins with one, pass the cache by."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return os.open(path, flags | direct)
    except OSError:
        return os.open(path, flags)  # a file system without


def _write_fully(descriptor: int, data: NDArray[np.uint8], offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:].data, offset + done)


def sync(path: Path) -> None:
    """Returns when what was written to a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileDigest:
    """XXH3 of a file, from its beginning on, while it grows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._digest = xxh3_128()
        self._block = memoryview(bytearray(_HASHED_BLOCK))
        #: Bytes that have been hashed.
        self.nbytes = 0

    def update(self, data: NDArray[np.uint8]) -> None:
        """Hashes `data`, which is what comes next in the file."""
        self._digest.update(data.data)
        self.nbytes += len(data)

    def advance(self, end: int) -> None:
        """Reads and hashes what lies before `end` and was not hashed yet, as far as the file goes."""
        while self.nbytes < end:
            part = self._block[: end - self.nbytes]
            count = os.preadv(self._descriptor, [part], self.nbytes)
            if count == 0:
                break
            self._digest.update(part[:count])
            self.nbytes += count

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def file_digest(path: Path) -> str:
    """XXH3 of a file, as hexadecimal digits: what the program `xxhsum -H2` prints."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        hashed = FileDigest(descriptor)
        hashed.advance(os.fstat(descriptor).st_size)
        drop_cached(descriptor)
        return hashed.hexdigest()
    finally:
        os.close(descriptor)


def drop_cached(descriptor: int) -> None:
    """Takes a file out of the system's cache, but for what the disk does not have yet."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
