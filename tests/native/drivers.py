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


def build_driver(name: str, folder: Path, flags: Sequence[str] = (), objects: Sequence[Path] = ()) -> Path:
    """tests/native/<name>.cpp, linked with `objects`, or with all of ops/experts compiled likewise."""
    sources = [] if objects else experts_sources()
    program = folder / name
    _compile([*flags, "-o", program, ROOT / "tests/native" / f"{name}.cpp", *sources, *objects, "-lpthread"], folder)
    return program


def build_objects(folder: Path, more_sources: Sequence[str] = ()) -> list[Path]:
    """Object files of all of ops/experts, and of `more_sources` below ops/, for several drivers."""
    _compile(["-c", *experts_sources(), *(ROOT / "ops" / source for source in more_sources)], folder)
    return sorted(folder.glob("*.o"))


def experts_sources() -> list[Path]:
    return [path for path in sorted((ROOT / "ops/experts").glob("*.cpp")) if path.name not in _NOT_UNDER_TEST]


def _compile(arguments: Sequence[str | Path], folder: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++) is installed")
    subprocess.run([compiler, "-std=c++17", f"-I{ROOT / 'ops'}", *arguments], check=True, timeout=300, cwd=folder)
