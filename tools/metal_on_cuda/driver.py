"""The CUDA driver through ctypes: modules, memory, launches."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .models import Array

Pointer = ctypes.c_uint64


class Cuda:
    """The first card. A failed call raises with the driver's name of the error."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(128)
        self("cuDeviceGetName", name, 128, device)
        self.name = name.value.decode()
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)

    def __call__(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(code, ctypes.byref(text))
            raise RuntimeError(f"{function}: {(text.value or b'?').decode()}")

    def upload(self, array: Array) -> Pointer:
        data = np.ascontiguousarray(array)
        pointer = Pointer()
        self("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(data.nbytes, 1)))
        self("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes))
        return pointer

    def download(self, pointer: Pointer, array: Array) -> None:
        self("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), pointer, ctypes.c_size_t(array.nbytes))

    def free(self, pointer: Pointer) -> None:
        self("cuMemFree_v2", pointer)

    def function(self, cubin: Path, name: str) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuModuleLoad", ctypes.byref(module), str(cubin).encode())
        self("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(
        self, function: ctypes.c_void_p, grid: tuple[int, int, int], threads: int, arguments: Sequence[Pointer]
    ) -> None:
        packed = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self("cuLaunchKernel", function, *grid, threads, 1, 1, 0, None, packed, None)

    def median_seconds(self, work: Callable[[], None], repeats: int) -> float:
        """Wall-clock time of work that the card does, each alone."""
        times = []
        for _ in range(repeats):
            self("cuCtxSynchronize")
            start = time.perf_counter()
            work()
            self("cuCtxSynchronize")
            times.append(time.perf_counter() - start)
        return float(np.median(times))
