"""Compiling the benchmark's own C++ programs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def compile_library(source: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The file `source` of this folder as a loaded library, compiled for this machine."""
    compiler = shutil.which("c++")
    if compiler is None:
        raise SystemExit(f"bench.moe compiles {source}: install a C++ compiler (g++ or clang).")
    folder = Path(tempfile.mkdtemp(prefix="onnx-moe-bench-"))
    target = folder / "library.so"
    command = [compiler, "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, str(Path(__file__).with_name(source)), "-o", str(target), *flags], check=True)
    library = ctypes.CDLL(str(target))
    shutil.rmtree(folder)
    return library
