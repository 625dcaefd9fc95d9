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
def library(file: str, element: str, target: str = "cpu", kernels: Path = KERNELS) -> Any:
    """A kernel file, translated for `target`, with activations of `element`."""
    return runner.compile(str(kernels / f"{file}.metal"), [str(kernels)], target, {"ELEMENT": element})


@dataclass(frozen=True)
class SimulatedDevice:
    """Runs launches in a schedule: the order of simdgroups and lanes between synchronisation points."""

    schedule: str = "forward"
    race_check: bool = False
    kernels: Path = KERNELS

    def run(self, launch: Launch) -> None:
        library(launch.file, launch.element, kernels=self.kernels).run(
            launch.kernel,
            launch.buffers,
            launch.threadgroups,
            (launch.threads, 1, 1),
            constants=launch.constants,
            schedule=self.schedule,
            race_check=self.race_check,
            strict=True,
        )
