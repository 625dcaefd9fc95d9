"""A shard while it is written: pieces anywhere in it, from several threads, and its digest at the end."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.export.checkpoint.buffers import BufferPool
from onnx_moe.export.checkpoint.disk import UncachedWriter
from onnx_moe.export.checkpoint.plan import Shard

#: Bytes that wait in memory for their turn to be hashed, at most; what is beyond is read back.
_MOST_WAITING = 64 << 20


@dataclass(frozen=True)
class _Piece:
    """A range of the file that is whole, and its bytes, unless they are to be read back."""

    end: int
    data: NDArray[np.uint8] | None


class ShardFile:
    """The file of `shard` at `path`, with room for all of it.

    What is whole from its beginning on is hashed while the rest is still written: from memory, what is not in the
    system's cache.
    """

    def __init__(self, path: Path, shard: Shard, buffers: BufferPool) -> None:
        self.path, self.nbytes = path, shard.nbytes
        self._places = shard.places
        self._file = UncachedWriter(path, shard.nbytes, buffers)
        self._digest = self._file.digest()
        self._hashing, self._waiting = threading.Lock(), threading.Lock()
        #: What is whole, but not known to be hashed, by where it begins.
        self._whole = _gaps(shard)
        self._waiting_bytes = 0

    def write(self, name: str, offset: int, data: np.ndarray[Any, Any]) -> None:
        """Puts `data` into output `name`, `offset` bytes after its beginning; each byte may be written once."""
        array = data.reshape(-1).view(np.uint8)
        begin = self._places[name].offset + offset
        cached = self._file.write(array, begin)
        with self._waiting:
            keeps = not cached and self._waiting_bytes + len(array) <= _MOST_WAITING
            self._waiting_bytes += len(array) if keeps else 0
        self._whole[begin] = _Piece(begin + len(array), array if keeps else None)
        self._hash_beginning()

    def _hash_beginning(self) -> None:
        """Hashes what is whole from the beginning on, unless another thread is at it."""
        if self._hashing.acquire(blocking=False):
            try:
                while piece := self._whole.pop(self._digest.nbytes, None):
                    self._hash(piece)
            finally:
                self._hashing.release()

    def _hash(self, piece: _Piece) -> None:
        if piece.data is None:
            self._digest.advance(piece.end)
            return
        self._digest.update(piece.data)
        with self._waiting:
            self._waiting_bytes -= len(piece.data)

    def finish(self) -> str:
        """Puts all on the disk. Returns the digest of the file."""
        self._hash_beginning()
        self._digest.advance(self.nbytes)
        self._file.sync()
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()


def _gaps(shard: Shard) -> dict[int, _Piece]:
    """What alignment leaves between the outputs of `shard`, by where it begins."""
    gaps, end = {}, 0
    for place in shard.places.values():
        if place.offset > end:
            gaps[end] = _Piece(place.offset, None)
        end = place.offset + place.output.nbytes
    return gaps
