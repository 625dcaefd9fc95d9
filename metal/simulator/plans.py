"""The host runtime's plans, from its own planner (metal/plan): what is launched for an operator, in which order."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import compilers

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *(f"metal/plan/{name}.cpp" for name in ("grouping", "projection", "router")),
    "metal/simulator/plan_bridge.cpp",
    *(f"ops/core/{name}.cpp" for name in ("activation", "fp4", "router")),
)

#: ElementType of ops/core/element_type.h, as MSL names them.
ELEMENTS = {1: "float", 10: "half", 16: "bfloat"}


class PlanError(ValueError):
    """The planner refuses a description."""


@dataclass(frozen=True)
class Argument:
    """One of: bytes of its own, a tensor of the operator by name, scratch memory by index, or nothing that is read."""

    bytes: bytes | None = None
    tensor: str | None = None
    scratch: int | None = None


@dataclass(frozen=True)
class PlannedLaunch:
    """A launch as metal/plan/plan.h describes it."""

    file: str
    kernel: str
    element: str
    constants: tuple[int, ...]
    arguments: tuple[Argument, ...]
    threadgroups: tuple[int, int]
    threads: int


@dataclass(frozen=True)
class ScratchMemory:
    """Zeroed before the first launch, or of any content."""

    bytes: int
    zeroed: bool


@dataclass(frozen=True)
class Plan:
    """Launches in order, and the scratch memory that they share."""

    scratch: tuple[ScratchMemory, ...]
    launches: tuple[PlannedLaunch, ...]


def build_planner(path: Path) -> None:
    """Compiles the planner as a shared library that needs no C++ runtime where it is loaded."""
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-static-libstdc++", "-static-libgcc", "-fvisibility=hidden"]
    # Another C++ runtime in the process must not see this one's: their streams would share parts.
    flags.append("-Wl,--exclude-libs,ALL")
    folders = [f"-I{ROOT / folder}" for folder in ("ops", "metal")]
    sources = [str(ROOT / source) for source in SOURCES]
    compilers.run("compiling the planner", [compilers.compiler(), *flags, *folders, *sources, "-o", str(path)])


@functools.cache
def _planner() -> Any:
    given = os.environ.get("ONNX_MOE_PLANNER")  # where there is no compiler
    if given:
        library = ctypes.CDLL(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "planner.so"
            build_planner(path)
            library = ctypes.CDLL(str(path))
    library.onnx_moe_metal_plan.restype = ctypes.c_char_p
    return library


def make_plan(description: Mapping[str, Any]) -> Plan:
    """The plan of an operator; plan_bridge.cpp says which names a description has."""
    lines = "".join(f"{name} {value}\n" for name, value in description.items())
    answer = _planner().onnx_moe_metal_plan(lines.encode()).decode()
    if answer.startswith("error: "):
        raise PlanError(answer)
    plan = json.loads(answer)
    scratch = tuple(ScratchMemory(**memory) for memory in plan["scratch"])
    return Plan(scratch, tuple(_launch(launch) for launch in plan["launches"]))


def _launch(launch: dict[str, Any]) -> PlannedLaunch:
    arguments = tuple(
        Argument(bytes(given["bytes"]) if "bytes" in given else None, given.get("tensor"), given.get("scratch"))
        for given in launch["arguments"]
    )
    across, down = launch["threadgroups"]
    constants = tuple(launch["constants"])
    element = ELEMENTS[launch["type"]]
    return PlannedLaunch(
        launch["file"], launch["kernel"], element, constants, arguments, (across, down), launch["threads"]
    )
