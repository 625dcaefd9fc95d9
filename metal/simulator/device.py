"""The simulated GPU: kernels of metal/kernels on fibers of this machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from .launch import Grid, Options, Schedule
from .library import COUNT_LOADS, KernelLibrary
from .operators import Launch

KERNELS = Path(__file__).parent.parent / "kernels"


@functools.cache
def kernel_library(
    file: str, element: str, kernels: Path = KERNELS, flags: tuple[str, ...] = (), open_constants: bool = False
) -> KernelLibrary:
    """A kernel file with activations of `element`."""
    return KernelLibrary.load(kernels / f"{file}.metal", {"ELEMENT": element}, flags, open_constants)


@dataclass(frozen=True)
class SimulatedDevice:
    """Runs launches in a schedule: the order of simdgroups and lanes between synchronisation points.

    specialised: compile each kernel for its function constants, as Metal does; otherwise they are variables, and one
    compilation serves them all. race_check: run under ThreadSanitizer. flush_subnormals: as Options has it.
    """

    schedule: Schedule = "forward"
    race_check: bool = False
    kernels: Path = KERNELS
    specialised: bool = False
    flush_subnormals: bool = False

    def run(self, launch: Launch) -> None:
        options = Options(self.schedule, strict=True, flush_subnormals=self.flush_subnormals)
        open_constants = not (self.race_check or self.specialised)
        library = kernel_library(launch.file, launch.element, self.kernels, open_constants=open_constants)
        run = library.check_races if self.race_check else library.run
        run(launch.kernel, launch.buffers, _grid(launch), launch.constants, options)


def count_loads(launch: Launch) -> tuple[int, ...]:
    """Runs a launch; the bytes that it loads from each buffer, each byte once a simdgroup. Needs clang."""
    library = kernel_library(launch.file, launch.element, flags=COUNT_LOADS)
    return library.run(launch.kernel, launch.buffers, _grid(launch), launch.constants, Options(strict=True)).loaded


def _grid(launch: Launch) -> Grid:
    return Grid(launch.threadgroups, (launch.threads,))
