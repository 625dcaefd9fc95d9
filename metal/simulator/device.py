"""The simulated GPU: kernels of metal/kernels on fibers of this machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import runner
from .operators import Launch

KERNELS = Path(__file__).parent.parent / "kernels"


@functools.cache
def library(
    file: str,
    element: str,
    target: str = "cpu",
    kernels: Path = KERNELS,
    open_constants: bool = False,
    flags: tuple[str, ...] = (),
) -> runner.Library:
    """A kernel file, translated for `target`, with activations of `element`."""
    source = str(kernels / f"{file}.metal")
    return runner.compile(source, [str(kernels)], target, {"ELEMENT": element}, flags, open_constants=open_constants)


@dataclass(frozen=True)
class SimulatedDevice:
    """Runs launches in a schedule: the order of simdgroups and lanes between synchronisation points.

    specialised: compile each kernel for its function constants, as Metal does; otherwise they are variables, and one
    compilation serves them all. count_loads: count what is loaded (clang only; specialised too).
    """

    schedule: str = "forward"
    race_check: bool = False
    kernels: Path = KERNELS
    specialised: bool = False
    count_loads: bool = False

    def run(self, launch: Launch) -> None:
        self._run(launch)

    def loads(self, launch: Launch) -> list[int]:
        """Runs a launch; the bytes that it loads from each buffer, each byte once a simdgroup."""
        return self._run(launch)["loaded"]

    def _run(self, launch: Launch) -> dict[str, Any]:
        open_constants = not (self.race_check or self.specialised or self.count_loads)
        flags = ("-fsanitize-coverage=edge,trace-loads",) if self.count_loads else ()
        kernels = library(launch.file, launch.element, "cpu", self.kernels, open_constants, flags)
        return kernels.run(
            launch.kernel,
            list(launch.buffers),
            (*launch.threadgroups, 1),
            (launch.threads, 1, 1),
            constants=launch.constants,
            schedule=self.schedule,
            race_check=self.race_check,
            strict=True,
        )
