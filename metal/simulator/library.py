"""Kernel files compiled as C++ and run on fibers of this machine.

library = KernelLibrary.load(Path("kernels.metal"))
library.run("kernel", [a, b, out], Grid((4,), (64,)))
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cache, compilers, sanitizer
from .errors import KernelError, MslError
from .launch import Array, Grid, Launch, LaunchStructure, Options, Statistics
from .symbols import source_line
from .translation import SHIM, Program, entry_symbol, generate, preprocess

# -fno-strict-aliasing: kernels read buffers as other types. -ffp-contract=off: only fma() fuses.
FLAGS = ("-std=c++17", "-O2", "-g1", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv", "-w")
_SHARED = ("-fPIC", "-shared", f"-I{SHIM}")
#: clang's, for counting loads.
COUNT_LOADS = ("-fsanitize-coverage=edge,trace-loads",)
_MOST_CONSTANTS = 32


def fiber_runtime_path() -> Path:
    """What kernels run on, compiled."""
    compiler = compilers.compiler()
    sources = [str(path) for path in sorted((SHIM / "fibers").glob("*.cpp"))]

    def make(path: Path) -> None:
        compilers.run(
            "compiling the fibers", [compiler, *FLAGS, *_SHARED, "-pthread", *sources, "-o", str(path), "-ldl"]
        )

    return cache.build(cache.FOLDER / f"fibers_{cache.digest(compiler, cache.shim_digest())}.so", make)


@functools.cache
def fiber_runtime() -> Any:
    """Loaded once for all kernels: each of its copies would take thread-local memory."""
    runtime = ctypes.CDLL(str(fiber_runtime_path()), mode=ctypes.RTLD_GLOBAL)
    runtime.mslrt_launch_size.restype = ctypes.c_ulong
    assert runtime.mslrt_launch_size() == ctypes.sizeof(LaunchStructure), "launch.py and launch.h differ"
    return runtime


@dataclass(frozen=True)
class KernelLibrary:
    """A file's kernels, compiled when they are first run: each for its function constants, or with open_constants all
    at once, with variables in their place."""

    text: str
    flags: tuple[str, ...] = ()
    open_constants: bool = False

    @classmethod
    def load(
        cls,
        source: Path | str,
        definitions: Mapping[str, str] | None = None,
        flags: tuple[str, ...] = (),
        open_constants: bool = False,
    ) -> KernelLibrary:
        """From a file, or from MSL text."""
        return cls(preprocess(source, definitions), flags, open_constants)

    @functools.cached_property
    def program(self) -> Program:
        return Program(self.text, "cpu")

    def source(self, kernels: Sequence[str] | None, constants: Mapping[int, int]) -> str:
        return generate(self.text, "cpu", kernels, constants, self.open_constants)

    def shared_object(self, kernels: Sequence[str] | None = None, constants: Mapping[int, int] | None = None) -> Path:
        """The path of the compiled kernels (None: all)."""
        text = self.source(kernels, constants or {})
        compiler = compilers.compiler()
        flags = (*FLAGS, *self.flags, *_SHARED)
        path = cache.FOLDER / f"{cache.digest(text, flags, compiler, cache.shim_digest())}.so"

        def make(library: Path) -> None:
            path.with_suffix(".cpp").write_text(text)
            command = [compiler, *flags, str(path.with_suffix(".cpp")), "-o", str(library), "-lm"]
            compilers.run("compiling kernels", command)

        return cache.build(path, make)

    def run(
        self,
        kernel: str,
        buffers: Sequence[Array | None],
        grid: Grid,
        constants: Mapping[int, int] | None = None,
        options: Options | None = None,
    ) -> Statistics:
        """Runs a kernel; arrays are updated in place."""
        constants = constants or {}
        self._check_buffers(kernel, buffers)
        launch = Launch(buffers, grid, options or Options())
        path = self._load(kernel, constants, launch)
        fiber_runtime().mslrt_launch(ctypes.byref(launch.structure))
        if launch.error:
            raise KernelError(f"{kernel}: {launch.error}{source_line(path, launch.structure.fault)}")
        return launch.statistics()

    def check_races(
        self,
        kernel: str,
        buffers: Sequence[Array | None],
        grid: Grid,
        constants: Mapping[int, int] | None = None,
        options: Options | None = None,
    ) -> None:
        """Runs a kernel under ThreadSanitizer, to which each of its threads is one: conflicting accesses within a
        threadgroup that no barrier orders are an error. Arrays are updated in place."""
        self._check_buffers(kernel, buffers)
        text = generate(self.text, "cpu", [kernel], constants or {})
        sanitizer.run(kernel, sanitizer.build(kernel, text, FLAGS), Launch(buffers, grid, options or Options()))

    def _check_buffers(self, kernel: str, buffers: Sequence[Array | None]) -> None:
        if kernel not in self.program.kernels:
            raise MslError(f"there is no kernel {kernel}, only {', '.join(self.program.kernels)}")
        for parameter in self.program.kernels[kernel].parameters:
            if parameter.buffer is not None and parameter.buffer >= len(buffers):
                raise MslError(f"{kernel}: buffer {parameter.buffer} ({parameter.text}) is not given")

    def _load(self, kernel: str, constants: Mapping[int, int], launch: Launch) -> Path:
        """Has the launch call the kernel; the library that it is in."""
        path = self.shared_object() if self.open_constants else self.shared_object([kernel], constants)
        fiber_runtime()
        loaded = ctypes.CDLL(str(path))
        launch.structure.function = ctypes.cast(getattr(loaded, entry_symbol(kernel)), ctypes.c_void_p).value
        if self.open_constants:
            values = (ctypes.c_uint32 * _MOST_CONSTANTS)(*(int(constants.get(i, 0)) for i in range(_MOST_CONSTANTS)))
            loaded.msl_set_constants(values)
        return path
