"""The machine's limits, measured beside the implementations."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.compiling import compile_library


@dataclass(frozen=True)
class Limits:
    """Medians: bytes read a second by a plain loop over the weights' own mapping, float multiply-adds (operations a
    second), int8 dot products, products of bfloat16 tiles (0: not measured on this machine). All of all threads
    together.
    """

    read: float
    fma: float
    dot: float
    tiles: float


@functools.cache
def _library() -> ctypes.CDLL:
    library = compile_library("machine.cpp")
    for function in (library.bench_read, library.bench_fma, library.bench_dot, library.bench_tiles):
        function.restype = ctypes.c_double
    library.bench_read.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
    return library


class Machine:
    """Measures limits over `weights`, the file that the plugin reads, with `threads` threads."""

    def __init__(self, weights: Path, threads: int) -> None:
        with weights.open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._mapping, np.uint8)
        self._threads = threads
        self._read(0, self._bytes.size)  # the pages' first use

    def _read(self, begin: int, nbytes: int) -> float:
        """Seconds."""
        part = self._bytes[begin : begin + nbytes]
        return float(_library().bench_read(part.ctypes.data, part.size, self._threads))

    def read_loop(self, nbytes: int) -> ReadLoop:
        """A plain loop over `nbytes` bytes at a time, or over the file, if that is smaller."""
        return ReadLoop(self._read, self._bytes.size, min(nbytes, self._bytes.size))

    def limits(self, read: float, rounds: int = 3) -> Limits:
        """read: bytes a second, as a loop has measured it."""
        return Limits(
            read,
            statistics.median(_library().bench_fma(self._threads) for _ in range(rounds)),
            statistics.median(_library().bench_dot(self._threads) for _ in range(rounds)),
            statistics.median(_library().bench_tiles(self._threads) for _ in range(rounds)),
        )


class ReadLoop:
    """Reads part after part of a file, from its beginning again after its end, to be called in turn with what is
    compared with it: the machine is faster and slower from second to second.
    """

    def __init__(self, read: Callable[[int, int], float], size: int, nbytes: int) -> None:
        self._read, self._nbytes = read, nbytes
        self._begins = itertools.cycle(range(0, size - nbytes + 1, nbytes))
        self._seconds: list[float] = []

    def __call__(self) -> None:
        self._seconds.append(self._read(next(self._begins), self._nbytes))

    @property
    def rate(self) -> float:
        """Median bytes a second."""
        return self._nbytes / statistics.median(self._seconds)
