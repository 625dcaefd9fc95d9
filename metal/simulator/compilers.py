"""The compilers of this machine that the simulator uses: one place that looks for them."""

from __future__ import annotations

import os
import shutil
import subprocess

from .errors import MslError

#: The oldest whose code and diagnostics the tests were seen to pass with.
_OLDEST_CLANG = 14


def _find(variable: str, *names: str) -> str | None:
    """The program that an environment variable names, or the first of `names` that is there."""
    given = os.environ.get(variable)
    return given or next((name for name in names if shutil.which(name)), None)


_VERSIONS = range(_OLDEST_CLANG + 16, _OLDEST_CLANG - 1, -1)
#: Checks address spaces; None where there is none.
CLANG = _find("ONNX_MOE_SIMULATOR_CLANG", *(f"clang-{version}" for version in _VERSIONS), "clang")
#: Compiles metal-cpp, which has blocks, and counts loads; None where there is none.
CLANGXX = _find("ONNX_MOE_SIMULATOR_CLANGXX", *(f"clang++-{version}" for version in _VERSIONS), "clang++")
#: Compiles kernels as C++.
CXX = _find("ONNX_MOE_SIMULATOR_CXX", CLANGXX or "clang++", "g++")


def preprocessor() -> str:
    found = CLANG or CXX
    if found is None:
        raise MslError("the simulator needs clang or g++, and there is neither")
    return found


def compiler() -> str:
    if CXX is None:
        raise MslError("the simulator compiles kernels with clang++ or g++, and there is neither")
    return CXX


def run(step: str, command: list[str]) -> None:
    """Runs a compiler; an MslError with what it says when it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise MslError(f"{step} failed:\n$ {' '.join(command)}\n{result.stderr[-6000:]}{result.stdout[-2000:]}")
