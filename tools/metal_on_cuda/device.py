"""Launches on an NVIDIA GPU: the kernels compiled by nvcc, run through the CUDA driver."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from metal.simulator.operators import Device, Launch
from metal.simulator.plans import build_planner

from .driver import Cuda, Pointer
from .models import Array

#: The host runtime's planner, compiled: the machine with the card may have no compiler.
PLANNER = "planner.so"
#: No contraction beyond the kernels' own fma, as Metal without fast math.
NVCC_FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-w", "-arch=sm_90")


def cubin_name(launch: Launch) -> str:
    values = "_".join(f"{index}-{int(value)}" for index, value in sorted(launch.constants.items()))
    return f"{launch.kernel}_{launch.element}_{values}.cubin"


class KeepingDevice(Device, Protocol):
    """A device that can hold arrays for several launches."""

    def keeping(self, arrays: list[Array]) -> contextlib.AbstractContextManager[None]: ...


@dataclass
class CollectingDevice:
    """Runs nothing; remembers what each launch needs."""

    launches: dict[str, Launch] = field(default_factory=dict)

    def run(self, launch: Launch) -> None:
        self.launches[cubin_name(launch)] = launch

    @contextlib.contextmanager
    def keeping(self, arrays: list[Array]) -> Iterator[None]:
        yield


def build(folder: Path, calls: Callable[[KeepingDevice], None]) -> None:
    """Compiles, for `folder`, the planner and every kernel that `calls` launches."""
    folder.mkdir(parents=True, exist_ok=True)
    device = CollectingDevice()
    with np.errstate(all="ignore"):  # nothing is computed: its values are no numbers
        calls(device)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name in pool.map(lambda item: _compile(folder / item[0], item[1]), device.launches.items()):
            print("compiled", name, flush=True)
    build_planner(folder / PLANNER)


def _compile(path: Path, launch: Launch) -> str:
    # Only here: translating needs a preprocessor, which the machine with the card may lack.
    from metal.simulator.device import KERNELS
    from metal.simulator.translation import SHIM, generate, preprocess

    text = preprocess(KERNELS / f"{launch.file}.metal", {"ELEMENT": launch.element})
    source = path.with_suffix(".cu")
    source.write_text(generate(text, "cuda", [launch.kernel], launch.constants))
    subprocess.run(["nvcc", *NVCC_FLAGS, f"-I{SHIM}", "-cubin", str(source), "-o", str(path)], check=True)
    return path.name


@dataclass
class CudaDevice:
    """Launches prebuilt kernels. Arrays that it is keeping stay on the card; others travel with every launch."""

    folder: Path
    cuda: Cuda = field(default_factory=Cuda)
    repeats: int = 1
    seconds: float = 0.0  # of the last launch, the median of `repeats`
    _kept: dict[int, Pointer] = field(default_factory=dict)
    _functions: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def keeping(self, arrays: list[Array]) -> Iterator[None]:
        self._kept = {_address(array): self.cuda.upload(array) for array in arrays}
        try:
            yield
        finally:
            for pointer in self._kept.values():
                self.cuda.free(pointer)
            self._kept.clear()

    def pointer(self, array: Array) -> Pointer:
        """Where an array is that stays on the card."""
        return self._kept[_address(array)]

    def run(self, launch: Launch) -> None:
        name = cubin_name(launch)
        if name not in self._functions:
            self._functions[name] = self.cuda.function(self.folder / name, f"mslk_{launch.kernel}")
        own = [(buffer, self.cuda.upload(buffer)) for buffer in launch.buffers if _address(buffer) not in self._kept]
        places = {_address(buffer): pointer for buffer, pointer in own} | self._kept
        buffers = np.array([places[_address(buffer)].value for buffer in launch.buffers], np.uint64)
        table = self.cuda.upload(buffers)
        grid = (*launch.threadgroups, 1)
        function = self._functions[name]
        self.seconds = self.cuda.median_seconds(
            lambda: self.cuda.launch(function, grid, launch.threads, [table]), self.repeats
        )
        for buffer, pointer in own:
            if buffer.flags.writeable:
                self.cuda.download(pointer, buffer)
        for pointer in (*(pointer for _, pointer in own), table):
            self.cuda.free(pointer)


def _address(array: Array) -> int:
    """Views of one memory are one buffer."""
    return int(array.ctypes.data)
