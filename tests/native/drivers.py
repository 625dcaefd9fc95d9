"""Programs in C++ that use parts of the plugin without ONNX Runtime."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Of ops/experts: not used by the drivers.
_NOT_UNDER_TEST = {"cache_simulator.cpp", "residency_registry.cpp", "routing_recorder.cpp", "object_cache.cpp"}


def build_driver(name: str, folder: Path, flags: Sequence[str] = (), more_sources: Sequence[str] = ()) -> Path:
    """tests/native/<name>.cpp with all of ops/experts, compiled with `flags`. Skips where there is no compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++) is installed")
    program = folder / name
    sources = [ROOT / "tests/native" / f"{name}.cpp", *(ROOT / "ops" / source for source in more_sources)]
    sources += [path for path in sorted((ROOT / "ops/experts").glob("*.cpp")) if path.name not in _NOT_UNDER_TEST]
    command = [compiler, "-std=c++17", *flags, f"-I{ROOT / 'ops'}", "-o", program, *sources, "-lpthread"]
    subprocess.run(command, check=True, timeout=300)
    return program
