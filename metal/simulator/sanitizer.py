"""Kernels under ThreadSanitizer, which cannot be loaded into Python: a program for each, and a file between the two."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import cache, compilers
from .errors import KernelError
from .launch import Launch, LaunchStructure
from .translation import SHIM, entry_symbol

_ALIGNMENT = 16
_RACED = 66  # the exit status that is asked for
_OPTIONS = (
    f"exitcode={_RACED} history_size=4 report_signal_unsafe=0 atexit_sleep_ms=0 handle_segv=0 handle_sigbus=0 "
    "handle_sigfpe=0"
)


def build(kernel: str, text: str, flags: Sequence[str]) -> Path:
    """The program that runs a translated kernel once."""
    compiler = compilers.compiler()
    common = [compiler, *(flag for flag in flags if flag != "-O2"), "-O1", "-fPIE", f"-I{SHIM}"]
    runtime = _build_runtime(common)
    # Under the name that sanitized_main.cpp calls.
    call = f"mslns::{entry_symbol(kernel)}(buffers, thread)"
    source = f'{text}extern "C" void msl_entry(void** buffers, const mslns::msl_thread* thread) {{ {call}; }}\n'
    path = cache.FOLDER / f"{cache.digest(source, common, cache.shim_digest())}.exe"

    def make(program: Path) -> None:
        file = program.with_suffix(".cpp")
        file.write_text(source)
        link = [
            "-fsanitize=thread",
            "-pie",
            "-rdynamic",
            "-pthread",
            str(file),
            str(runtime),
            "-o",
            str(program),
            "-ldl",
        ]
        compilers.run("compiling a kernel", [*common, *link])

    return cache.build(path, make)


def _build_runtime(common: list[str]) -> Path:
    """Fibers and main, which tell the sanitizer what threads there are and are not looked at themselves."""
    path = cache.FOLDER / f"fibers_{cache.digest(common, cache.shim_digest())}.o"

    def make(object_file: Path) -> None:
        objects = []
        for source in (*sorted((SHIM / "fibers").glob("*.cpp")), SHIM / "sanitized_main.cpp"):
            objects.append(str(object_file.parent / f"{source.stem}_part.o"))
            compilers.run("compiling the fibers", [*common, "-DMSL_TSAN", "-c", str(source), "-o", objects[-1]])
        compilers.run("linking the fibers", [common[0], "-r", "-nostdlib", *objects, "-o", str(object_file)])

    return cache.build(path, make)


def run(kernel: str, program: Path, launch: Launch) -> None:
    """Raises a KernelError that names the lines of a race, or what else the kernel did wrong."""
    launch.structure.guard = 0
    head = _padded(bytes(launch.structure))
    with tempfile.NamedTemporaryFile(dir=cache.FOLDER, suffix=".job") as file:
        file.write(head)
        places = []
        for array in launch.buffers:
            data = b"" if array is None else array.tobytes()
            file.write(np.array([len(data), 0], np.uint64).tobytes())
            places.append((file.tell(), len(data)))
            file.write(_padded(data))
        file.flush()
        environment = os.environ | {"TSAN_OPTIONS": _OPTIONS}
        command = [str(program), file.name, str(len(head))]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        file.seek(0)
        written = file.read()
    found = races(result.stderr)
    if found:
        raise KernelError(f"{kernel}: data race: {'; '.join(found[:4])}")
    if result.returncode:
        raise KernelError(f"{kernel}: the sanitized run ended with {result.returncode}:\n{result.stderr[-3000:]}")
    launch.structure = LaunchStructure.from_buffer_copy(written[: ctypes.sizeof(LaunchStructure)])
    if launch.error:
        raise KernelError(f"{kernel}: {launch.error}")
    for array, (offset, size) in zip(launch.buffers, places, strict=True):
        if array is not None and array.flags.writeable:
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(written[offset : offset + size], np.uint8)


def races(report: str) -> list[str]:
    """'write at f.metal:10 / read at f.metal:12' for each race that ThreadSanitizer reports."""
    found: dict[str, None] = {}
    for race in report.split("WARNING: ThreadSanitizer: data race")[1:]:
        accesses = re.findall(
            r"((?:[Pp]revious )?(?:atomic )?(?:[Ww]rite|[Rr]ead)) of size \d+.*?\n(.*?)(?:\n\n|$)", race, re.DOTALL
        )
        sides = [f"{kind.lower().replace('previous ', '')} at {_place(stack)}" for kind, stack in accesses]
        if sides:
            found[" / ".join(sides[:2])] = None
    return list(found)


def _place(stack: str) -> str:
    """The innermost line of a stack that is not the shim's."""
    lines = re.findall(r"(\S+):(\d+):\d+", stack)
    return next((f"{Path(file).name}:{line}" for file, line in lines if str(SHIM) not in file), "?")


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // _ALIGNMENT) * _ALIGNMENT, b"\0")
