"""One launch of a kernel on fibers, as ../shim/launch.h lays it out, and what came of it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import MslError

Array = np.ndarray[Any, Any]
#: The order of simdgroups and lanes between two points where they wait for each other.
Schedule = Literal["forward", "reverse", "random"]
_SCHEDULES: tuple[Schedule, ...] = ("forward", "reverse", "random")
#: Metal's argument table for buffers.
MOST_BUFFERS = 31


class LaunchStructure(ctypes.Structure):
    """struct MslLaunch."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("buffers", ctypes.c_void_p),
        ("buffer_bytes", ctypes.c_void_p),
        ("buffer_count", ctypes.c_uint32),
        ("threadgroups", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("schedule", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("strict", ctypes.c_uint32),
        ("guard", ctypes.c_uint32),
        ("threadgroup_limit", ctypes.c_uint32),
        ("flush_subnormals", ctypes.c_uint32),
        ("diverged", ctypes.c_uint64),
        ("loaded", ctypes.c_uint64 * MOST_BUFFERS),
        ("note", ctypes.c_char * 512),
        ("error", ctypes.c_char * 1024),
        ("fault", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Grid:
    """Threadgroups, and threads of each; up to three dimensions."""

    threadgroups: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (32,)


@dataclass(frozen=True)
class Options:
    """How a launch runs.

    strict: a simdgroup function that only some live lanes reach is an error. guard: on copies of the buffers that end
    at pages which cannot be touched. flush_subnormals: float subnormals are zeros, as Apple GPUs may have it.
    """

    schedule: Schedule = "forward"
    seed: int = 1
    strict: bool = False
    guard: bool = True
    threadgroup_limit: int = 32768
    flush_subnormals: bool = False


@dataclass(frozen=True)
class Statistics:
    """`diverged`: simdgroup functions that only some lanes reached, and the first of them in words. `loaded`: bytes of
    each buffer, each once a simdgroup, where the kernel was compiled to count them."""

    diverged: int
    note: str
    loaded: tuple[int, ...]


class Launch:
    """A launch's structure, and the memory that it points to. Buffers are updated in place."""

    def __init__(self, buffers: Sequence[Array | None], grid: Grid, options: Options) -> None:
        for index, array in enumerate(buffers):
            if array is not None and not array.flags.c_contiguous:
                raise MslError(f"buffer {index} is not contiguous")
        if len(buffers) > MOST_BUFFERS:
            raise MslError(f"{len(buffers)} buffers are more than Metal's argument table holds, {MOST_BUFFERS}")
        self.buffers = buffers
        self._pointers = (ctypes.c_void_p * MOST_BUFFERS)(
            *(None if array is None else array.ctypes.data for array in buffers)
        )
        self._bytes = (ctypes.c_uint64 * MOST_BUFFERS)(*(0 if array is None else array.nbytes for array in buffers))
        structure = self.structure = LaunchStructure()
        structure.buffers = ctypes.addressof(self._pointers)
        structure.buffer_bytes = ctypes.addressof(self._bytes)
        structure.buffer_count = len(buffers)
        for axis in range(3):
            structure.threadgroups[axis] = (*grid.threadgroups, 1, 1)[axis]
            structure.threads[axis] = (*grid.threads, 1, 1)[axis]
        structure.schedule = _SCHEDULES.index(options.schedule)
        structure.seed = options.seed
        structure.strict = options.strict
        structure.guard = options.guard
        structure.threadgroup_limit = options.threadgroup_limit
        structure.flush_subnormals = options.flush_subnormals

    @property
    def error(self) -> str:
        text: bytes = self.structure.error
        return text.decode(errors="replace")

    def statistics(self) -> Statistics:
        note = self.structure.note.decode(errors="replace")
        return Statistics(self.structure.diverged, note, tuple(self.structure.loaded[: len(self.buffers)]))
