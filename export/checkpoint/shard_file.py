"""A shard while it is written: pieces anywhere in it, from several threads, and its digest at the end."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from onnx_moe.export.checkpoint.disk import FileDigest, drop_cached, write_fully
from onnx_moe.export.checkpoint.plan import Shard


class ShardFile:
    """The file of `shard` at `path`, with room for all of it.

    Its bytes are hashed in their order, soon after they are written, so that they are still in the system's cache.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        self.path, self.nbytes = path, shard.nbytes
        self._places = shard.places
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._digest = FileDigest(self._descriptor)
        self._hashing = threading.Lock()
        #: Where each range that is whole, but not known to be hashed, ends, by its beginning.
        self._whole = _gaps(shard)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, shard.nbytes)  # a full disk is known now
            else:
                os.ftruncate(self._descriptor, shard.nbytes)
        except OSError:
            self.close()
            raise

    def write(self, name: str, offset: int, data: np.ndarray[Any, Any]) -> None:
        """Puts `data` into output `name`, `offset` bytes after its beginning; each byte may be written once."""
        view = data.reshape(-1).view(np.uint8).data
        begin = self._places[name].offset + offset
        write_fully(self._descriptor, view, begin)
        self._whole[begin] = begin + len(view)
        self._hash_beginning()

    def _hash_beginning(self) -> None:
        """Hashes what is whole from the beginning on, unless another thread is at it."""
        if self._hashing.acquire(blocking=False):
            try:
                end = self._digest.nbytes
                while (following := self._whole.pop(end, end)) > end:
                    end = following
                self._digest.advance(end)
            finally:
                self._hashing.release()

    def finish(self) -> str:
        """Puts all on the disk. Returns the digest of the file."""
        with self._hashing:
            self._digest.advance(self.nbytes)
        os.fsync(self._descriptor)
        drop_cached(self._descriptor, 0, self.nbytes)
        return self._digest.hexdigest()

    def close(self) -> None:
        os.close(self._descriptor)


def _gaps(shard: Shard) -> dict[int, int]:
    """Beginning and end of what alignment leaves between the outputs of `shard`."""
    gaps, end = {}, 0
    for place in shard.places.values():
        if place.offset > end:
            gaps[end] = place.offset
        end = place.offset + place.output.nbytes
    return gaps
