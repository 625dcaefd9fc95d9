"""Memory for what is read and computed, used again: fresh pages would cost as much as the quantiser."""

from __future__ import annotations

import mmap
import threading
import weakref
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Smaller arrays are the allocator's business.
_SMALLEST = 1 << 18
#: Sizes are rounded up to this, a huge page.
_GRAIN = 2 << 20
#: Bytes that wait to be used again, at most.
_MOST_FREE = 512 << 20


def rounded_up(number: int, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return -(-number // step) * step


class BufferPool:
    """Gives out arrays whose memory comes back by itself once nothing refers to them. For several threads."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []  # the last used is the first to be used again: the cache may still hold it
        self._lock = threading.Lock()
        # An array can end in a garbage collection, that is, within any statement of this class: no lock then.
        self._returned: SimpleQueue[mmap.mmap] = SimpleQueue()

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """An array of `nbytes`, whatever they hold, that begins with a page."""
        if nbytes < _SMALLEST:
            array = np.empty(nbytes + mmap.PAGESIZE, np.uint8)
            skipped = -array.ctypes.data % mmap.PAGESIZE
            return array[skipped : skipped + nbytes]
        memory = self._find(nbytes) or _map(nbytes)
        array = np.frombuffer(memory, np.uint8, nbytes)
        # Views and tensors made of the array refer to it, not to the memory.
        weakref.finalize(array, self._returned.put, memory).atexit = False
        return array

    def _find(self, nbytes: int) -> mmap.mmap | None:
        """A free mapping that is large enough, and not much larger."""
        with self._lock:
            self._collect()
            for index in reversed(range(len(self._free))):
                if nbytes <= len(self._free[index]) < 2 * nbytes + _GRAIN:
                    return self._free.pop(index)
        return None

    def _collect(self) -> None:
        while True:
            try:
                self._free.append(self._returned.get_nowait())
            except Empty:
                break
        while sum(map(len, self._free)) > _MOST_FREE:
            self._free.pop(0)


def _map(nbytes: int) -> mmap.mmap:
    # Private: shared memory is a file of small pages.
    memory = mmap.mmap(-1, rounded_up(nbytes, _GRAIN), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice: Any = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        memory.madvise(advice)
    return memory
