"""Compiled files, kept under a digest of what they were made from."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

from .translation import SHIM

FOLDER = Path(os.environ.get("ONNX_MOE_SIMULATOR_CACHE", Path(__file__).resolve().parents[2] / "build/metal_simulator"))


def digest(*parts: object) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(str(part).encode() + b"\0")
    return hashed.hexdigest()[:20]


@functools.cache
def shim_digest() -> str:
    """Of the headers, and of the processor, since kernels are compiled with -march=native."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    texts = [path.read_text() for path in sorted(SHIM.rglob("*")) if path.suffix in (".h", ".cpp")]
    return digest(platform.machine(), processor, *texts)


def build(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, which `make` writes under another name when it is not there: whoever finds it finds all of it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            make(made)
            made.replace(path)
    return path
