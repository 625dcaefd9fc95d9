"""The machine's limits, measured beside the implementations."""

from __future__ import annotations

import ctypes
import functools
import mmap
import statistics
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
    """Measures limits over `weights`, the file that the plugin reads."""

    def __init__(self, weights: Path) -> None:
        with weights.open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._mapping, np.uint8)

    def read(self, threads: int) -> float:
        """Seconds for the whole file."""
        return float(_library().bench_read(self._bytes.ctypes.data, self._bytes.size, threads))

    def limits(self, threads: int, rounds: int = 7) -> Limits:
        self.read(threads)  # the pages' first use
        return Limits(
            self._bytes.size / statistics.median(self.read(threads) for _ in range(rounds)),
            statistics.median(_library().bench_fma(threads) for _ in range(rounds)),
            statistics.median(_library().bench_dot(threads) for _ in range(rounds)),
            statistics.median(_library().bench_tiles(threads) for _ in range(rounds)),
        )
