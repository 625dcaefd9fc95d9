"""Compiles Metal kernels as C++ and runs them on fibers of this machine.

library = runner.compile("kernels.metal", include_dirs=[...])
library.run("my_kernel", buffers=[a, b, out], threadgroups=(4, 1, 1), threads_per_threadgroup=(64, 1, 1))
runner.check("kernels.metal", include_dirs=[...])  # address-space errors, [] if none
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from . import translator
from .translator import MslError

SHIM = translator.SHIM
CACHE = os.environ.get("ONNX_MOE_SIMULATOR_CACHE", str(Path(translator.HERE).parents[1] / "build" / "metal_simulator"))


def _first(names):
    return next((n for n in names if shutil.which(n)), names[0])


CLANG = os.environ.get("ONNX_MOE_SIMULATOR_CLANG") or _first(
    ["clang-19", "clang-22", "clang-21", "clang-20", "clang"]
)  # check() needs clang
CXX = os.environ.get("ONNX_MOE_SIMULATOR_CXX") or _first([CLANG.replace("clang", "clang++"), "clang++", "g++"])
CPP = CLANG if shutil.which(CLANG) else CXX  # preprocessing step
NVCC = os.environ.get("ONNX_MOE_SIMULATOR_NVCC", "nvcc")
# -fno-strict-aliasing: kernels reinterpret buffers freely. -ffp-contract=off: only fma() fuses.
CPU_FLAGS = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-w",
]
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-w"]
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}


class KernelError(RuntimeError):
    """The kernel did something undefined: bad access, assert, barrier divergence."""


class Launch(ctypes.Structure):  # struct MslLaunch of fibers.cpp
    _fields_ = [
        ("fn", ctypes.c_void_p),
        ("bufs", ctypes.c_void_p),
        ("buf_bytes", ctypes.c_void_p),
        ("nbufs", ctypes.c_uint32),
        ("tg_bytes", ctypes.c_uint32 * 8),
        ("grid", ctypes.c_uint32 * 3),
        ("tpg", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("workers", ctypes.c_uint32),
        ("schedule", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("strict", ctypes.c_uint32),
        ("guard", ctypes.c_uint32),
        ("tg_limit", ctypes.c_uint32),
        ("ftz", ctypes.c_uint32),
        ("timeout", ctypes.c_uint32),
        ("n_threads", ctypes.c_uint64),
        ("n_simd", ctypes.c_uint64),
        ("n_barrier", ctypes.c_uint64),
        ("n_diverged", ctypes.c_uint64),
        ("n_partial", ctypes.c_uint64),
        ("tg_used", ctypes.c_uint64),
        ("loaded", ctypes.c_uint64 * 32),
        ("note", ctypes.c_char * 512),
        ("err", ctypes.c_char * 1024),
        ("fault_pc", ctypes.c_uint64),
    ]


def _hash(*parts):
    h = hashlib.sha256()
    for p in parts:
        h.update(p if isinstance(p, bytes) else str(p).encode())
        h.update(b"\0")
    return h.hexdigest()[:20]


def _shim_hash():
    """Identifies the shim and, since kernels are built with -march=native, the processor."""
    cpu = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    data = [cpu.encode()] + [Path(SHIM, f).read_bytes() for f in sorted(os.listdir(SHIM)) if f.endswith((".h", ".cpp"))]
    return _hash(*data)


def _tool(cmd, what):
    p = subprocess.run(cmd, capture_output=True, text=True)
    if p.returncode:
        raise MslError(f"{what} failed:\n$ {' '.join(cmd)}\n{p.stderr[-6000:]}{p.stdout[-2000:]}")
    return p


def _build(path, make):
    """Create path through a temporary name, once."""
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd, tmp = tempfile.mkstemp(dir=os.path.dirname(path), suffix=os.path.splitext(path)[1])
        os.close(fd)
        try:
            make(tmp)
            os.replace(tmp, path)
        finally:
            if os.path.exists(tmp):
                os.unlink(tmp)
    return path


def _triple(v):
    v = (v,) if np.isscalar(v) else tuple(v)
    return tuple(int(x) for x in v) + (1,) * (3 - len(v))


def _as_array(b):
    """A buffer argument as a numpy array; bytes, scalars and ctypes structures are copied."""
    if b is None or isinstance(b, np.ndarray):
        return b
    if isinstance(b, (bytes, bytearray)):
        return np.frombuffer(bytes(b), np.uint8).copy()
    if isinstance(b, ctypes.Structure):
        return np.frombuffer(bytes(b), np.uint8).copy()
    return np.atleast_1d(np.asarray(b))


def fiber_runtime_path():
    """fibers.cpp, compiled."""

    def make(tmp):
        source = os.path.join(SHIM, "fibers.cpp")
        flags = [*CPU_FLAGS, "-I", SHIM, "-shared", "-pthread"]
        _tool([CXX, *flags, source, "-o", tmp, "-lm", "-ldl"], "runtime compilation")

    return _build(os.path.join(CACHE, "fibers_" + _hash(CXX, _shim_hash()) + ".so"), make)


@functools.cache
def fiber_runtime(cxx):
    """Loaded once for all kernels: each of its copies would take thread-local memory."""
    runtime = ctypes.CDLL(fiber_runtime_path(), mode=ctypes.RTLD_GLOBAL)
    runtime.mslrt_launch_size.restype = ctypes.c_ulong
    assert runtime.mslrt_launch_size() == ctypes.sizeof(Launch), "launch structure mismatch"
    return runtime


class Library:
    """One MSL source, specialised and compiled on demand per kernel and function constants."""

    def __init__(self, text, target, flags=(), unroll=False, cxx=None, open_constants=False):
        self.open_constants = open_constants
        self.text, self.target, self.flags, self.unroll = text, target, list(flags), unroll
        self.cxx = cxx or CXX
        self.program = translator.Program(text, "cuda" if target == "cuda" else "cpu")
        self.kernels = self.program.kernels
        self._fn = {}
        self.compile_seconds = 0.0

    def kernel_names(self):
        return list(self.kernels)

    def params(self, name):
        return self.kernels[name].params

    def source(self, names=None, constants=None):
        """The generated C++ (or CUDA) text."""
        return translator.generate(self.text, self.target, names, constants, self.unroll, self.open_constants)[0]

    def _constants(self, c):
        out = {}
        for k, v in (c or {}).items():
            out[self.program.function_constants[k][0] if isinstance(k, str) else int(k)] = v
        return out

    def shared_object(self):
        """Path of all kernels compiled with open constants."""
        return self._cpu_library(None, {})

    # -- CPU --
    def _cpu_library(self, names, constants):
        src = self.source(names, constants)
        flags = CPU_FLAGS + self.flags
        key = _hash(src, flags, self.cxx, _shim_hash())
        cpp, so = os.path.join(CACHE, key + ".cpp"), os.path.join(CACHE, key + ".so")

        def library(tmp):
            Path(cpp).write_text(src)
            _tool([self.cxx, *flags, "-I", SHIM, "-shared", cpp, "-o", tmp, "-lm"], "kernel compilation")

        t0 = time.time()
        _build(so, library)
        self.compile_seconds += time.time() - t0
        return so

    def _executable(self, name, constants, sanitize):
        """A stand-alone program for one kernel, with a sanitizer."""
        src = self.source([name], constants)
        flags = [f for f in CPU_FLAGS if f not in ("-fPIC", "-O2")] + ["-O1", "-fPIE"] + self.flags
        key = _hash(src, flags, self.cxx, sanitize, _shim_hash())
        base = os.path.join(CACHE, key)

        def make(tmp):
            with open(base + ".cpp", "w") as f:
                f.write(src)
            san = ["-fsanitize=" + sanitize]
            _tool([self.cxx, *flags, *san, "-I", SHIM, "-c", base + ".cpp", "-o", base + ".o"], "kernel compilation")
            rt = ["-DMSL_TSAN"] if sanitize == "thread" else []
            _tool(
                [self.cxx, *flags, *rt, "-I", SHIM, "-c", os.path.join(SHIM, "fibers.cpp"), "-o", base + ".rt.o"],
                "runtime compilation",
            )
            _tool(
                [
                    self.cxx,
                    *flags,
                    "-DMSL_ENTRY=" + translator.symbol(name),
                    "-c",
                    os.path.join(SHIM, "sanitized_main.cpp"),
                    "-o",
                    base + ".main.o",
                ],
                "runner compilation",
            )
            _tool(
                [
                    self.cxx,
                    *san,
                    "-pie",
                    "-rdynamic",
                    "-pthread",
                    base + ".o",
                    base + ".rt.o",
                    base + ".main.o",
                    "-o",
                    tmp,
                    "-ldl",
                ],
                "link",
            )
            os.chmod(tmp, 0o755)

        return _build(base + ".exe", make)

    def _run_sanitized(self, name, constants, sanitize, L, arr, n):
        exe = self._executable(name, constants, sanitize)
        head = -(-ctypes.sizeof(Launch) // 16) * 16
        with tempfile.NamedTemporaryFile(dir=CACHE, suffix=".job") as f:
            f.write(bytes(L).ljust(head, b"\0"))
            spans = {}
            for i in range(n):
                b = arr[i].tobytes() if arr.get(i) is not None else b""
                f.write(np.uint64([len(b), 0]).tobytes())
                spans[i] = (f.tell(), len(b))
                f.write(b.ljust(-(-len(b) // 16) * 16, b"\0"))
            f.flush()
            env = dict(
                os.environ,
                TSAN_OPTIONS=" ".join(
                    (
                        "exitcode=66",
                        "history_size=4",
                        "report_signal_unsafe=0",
                        "atexit_sleep_ms=0",
                        "handle_segv=0",
                        "handle_sigbus=0",
                        "handle_sigfpe=0",
                    )
                ),
            )
            t0 = time.perf_counter()
            p = subprocess.run([exe, f.name, str(head)], capture_output=True, text=True, env=env)
            dt = time.perf_counter() - t0
            f.seek(0)
            data = f.read()
        L2 = Launch.from_buffer_copy(data[: ctypes.sizeof(Launch)])
        races = _races(p.stderr)
        if p.returncode not in (0, 66) or (p.returncode == 66 and not races):
            raise KernelError(f"{name}: sanitized run ended with {p.returncode}:\n{p.stderr[-3000:]}")
        for i, (o, k) in spans.items():
            if k and arr[i].flags.writeable:
                arr[i].reshape(-1).view(np.uint8)[:] = np.frombuffer(data[o : o + k], np.uint8)
        return L2, races, dt

    def _function(self, name, constants):
        key = (name, () if self.open_constants else tuple(sorted(constants.items())))
        if key not in self._fn:
            if name not in self.kernels:
                raise MslError(f"no kernel named {name}")
            runtime = fiber_runtime(self.cxx)
            so = self._cpu_library(None, {}) if self.open_constants else self._cpu_library([name], constants)
            loaded = ctypes.CDLL(so)
            entry = getattr(loaded, translator.symbol(name))
            setter = loaded.msl_set_constants if self.open_constants else None
            self._fn[key] = (runtime, ctypes.cast(entry, ctypes.c_void_p).value, so, setter)
        runtime, entry, so, setter = self._fn[key]
        if setter:
            values = (ctypes.c_uint32 * 32)(*[int(constants.get(i, 0)) for i in range(32)])
            setter(values)
        return runtime, entry, so

    def run(
        self,
        name,
        buffers,
        threadgroups=None,
        threads_per_threadgroup=(32, 1, 1),
        constants=None,
        threadgroup_mem=None,
        threads=None,
        workers=1,
        schedule="forward",
        seed=1,
        strict=False,
        guard=True,
        tg_limit=32768,
        race_check=False,
        ftz=False,
        timeout=0,
    ):
        """Run one kernel; numpy arrays in buffers are updated in place. Returns statistics.

        buffers: list (by index) or {index: value}; value: array, bytes, scalar, ctypes structure.
        threads: total threads (dispatchThreads) instead of threadgroups.
        schedule: 'forward', 'reverse' or 'random' (seed) order between synchronisation points.
        strict: a simdgroup operation reached by only some live lanes is an error.
        guard: run on copies that end at an inaccessible page.
        ftz: flush float denormals to zero.  timeout: seconds (with one worker).
        race_check: run under ThreadSanitizer with one logical thread per GPU thread; conflicting
            accesses inside a threadgroup that no barrier orders are an error.
        """
        bufs = dict(enumerate(buffers)) if isinstance(buffers, (list, tuple)) else dict(buffers)
        arr = {}
        for i, b in bufs.items():
            a = _as_array(b)
            if a is not None and not a.flags.c_contiguous:
                raise MslError(f"buffer {i} is not contiguous")
            arr[i] = a
        tpg = _triple(threads_per_threadgroup)
        total = _triple(threads) if threads is not None else (0, 0, 0)
        grid = (
            _triple(threadgroups)
            if threadgroups is not None
            else tuple(-(-a // b) for a, b in zip(total, tpg, strict=False))
        )
        cons = self._constants(constants)
        for p in self.kernels[name].params if name in self.kernels else []:
            if (
                p["role"] == "buf"
                and arr.get(p["index"]) is None
                and "function_constant" not in p
                and p["index"] not in bufs
            ):
                raise MslError(f"{name}: buffer {p['index']} ({p['text']}) not given")
        tgm = dict(threadgroup_mem or {})
        n = max(arr, default=-1) + 1
        dll, fn, so = (None, 0, "") if race_check else self._function(name, cons)
        ptrs = (ctypes.c_void_p * max(n, 1))(
            *[arr[i].ctypes.data if arr.get(i) is not None else None for i in range(n)]
        )
        sizes = (ctypes.c_uint64 * max(n, 1))(*[arr[i].nbytes if arr.get(i) is not None else 0 for i in range(n)])
        L = Launch()
        L.fn, L.bufs, L.buf_bytes, L.nbufs = fn, ctypes.addressof(ptrs), ctypes.addressof(sizes), n
        for i in range(3):
            L.grid[i], L.tpg[i], L.threads[i] = grid[i], tpg[i], total[i]
        for i, b in tgm.items():
            L.tg_bytes[i] = int(b)
        L.workers, L.schedule, L.seed, L.strict, L.guard, L.tg_limit = (
            workers,
            SCHEDULES[schedule],
            seed,
            int(strict),
            int(guard),
            tg_limit,
        )
        L.ftz, L.timeout = int(ftz), int(timeout)
        races = []
        if race_check:
            L.workers, L.guard = 1, 0
            L, races, dt = self._run_sanitized(name, cons, "thread", L, arr, n)
        else:
            t0 = time.perf_counter()
            dll.mslrt_launch(ctypes.byref(L))
            dt = time.perf_counter() - t0
        if races:
            raise KernelError(f"{name}: data race: " + "; ".join(races[:4]))
        if L.err:
            msg = L.err.decode(errors="replace")
            if L.fault_pc and so:
                msg += " " + _where(so, L.fault_pc)
            raise KernelError(f"{name}: {msg}")
        return {
            "seconds": dt,
            "threads": L.n_threads,
            "simd_ops": L.n_simd,
            "barriers": L.n_barrier,
            "diverged": L.n_diverged,
            "partial": L.n_partial,
            "threadgroup_bytes": L.tg_used,
            "loaded": list(L.loaded),
            "note": L.note.decode(errors="replace"),
        }


def _races(text):
    """'write at f.metal:10 / read at f.metal:12' for every ThreadSanitizer report."""
    out = []
    for rep in text.split("WARNING: ThreadSanitizer: data race")[1:]:
        acc = []
        for kind, body in re.findall(
            r"((?:[Pp]revious )?(?:atomic )?(?:[Ww]rite|[Rr]ead)) of size \d+.*?\n(.*?)(?:\n\n|$)", rep, re.S
        ):
            loc = next(
                (
                    f"{os.path.basename(f)}:{number}"
                    for f, number in re.findall(r"(\S+):(\d+):\d+", body)
                    if os.path.dirname(f) != SHIM
                ),
                "?",
            )
            acc.append(f"{kind.lower().replace('previous ', '')} at {loc}")
        s = " / ".join(acc[:2])
        if s and s not in out:
            out.append(s)
    return out


def _where(so, pc):
    tool = next(
        (
            t
            for t in ("llvm-symbolizer-19", "llvm-addr2line-19", "addr2line")
            if any(os.access(os.path.join(d, t), os.X_OK) for d in os.environ["PATH"].split(":"))
        ),
        None,
    )
    if not tool:
        return ""
    cmd = [tool, "--obj=" + so, "--inlines", hex(pc)] if "symbolizer" in tool else [tool, "-e", so, "-i", hex(pc)]
    out = subprocess.run(cmd, capture_output=True, text=True).stdout
    lines = [x for x in re.findall(r"(\S+\.(?:metal|h|hpp)):(\d+)", out) if SHIM not in x[0]]
    return "at " + " <- ".join(f"{os.path.basename(f)}:{number}" for f, number in lines[:4]) if lines else ""


def compile(
    source,
    include_dirs=(),
    target="cpu",
    defines=(),
    flags=(),
    unroll=False,
    metal_version="320",
    cxx=None,
    open_constants=False,
):
    """source: path of a .metal file, or MSL text. Kernels are compiled when first run.

    open_constants: one compilation for all values of the function constants.
    """
    text = translator.preprocess(source, include_dirs, defines, CPP, metal_version)
    return Library(text, target, flags, unroll, cxx, open_constants)


def check(source, include_dirs=(), defines=(), clang=None, metal_version="320", extra=()):
    """Type-check with real address spaces (C++ for OpenCL 2021). Returns the diagnostics as a list."""
    clang = clang or CLANG
    text = translator.preprocess(source, include_dirs, defines, clang, metal_version)
    src, _ = translator.generate(text, "check")
    with tempfile.NamedTemporaryFile("w", suffix=".clcpp", delete=False) as f:
        f.write(src)
    try:
        p = subprocess.run(
            [
                clang,
                "-x",
                "clcpp",
                "-cl-std=clc++2021",
                "-cl-no-stdinc",
                "-cl-single-precision-constant",
                "-fsyntax-only",
                "-ferror-limit=0",
                "-w",
                "-I",
                SHIM,
                *extra,
                f.name,
            ],
            capture_output=True,
            text=True,
        )
    finally:
        os.unlink(f.name)
    return _lint(text) + [x for x in p.stderr.splitlines() if re.search(r"(error|warning): ", x)]


# Things an ordinary compiler accepts and MSL does not.
NOT_MSL = {
    "double",
    "goto",
    "new",
    "delete",
    "virtual",
    "dynamic_cast",
    "typeid",
    "throw",
    "try",
    "catch",
    "thread_local",
    "asm",
    "__asm__",
    "wchar_t",
}


def _lint(text):
    out, file, line = [], "?", 0
    for tok in translator.tokenize(text):
        line += tok.ws.count("\n")
        m = re.match(r'#\s*(?:line\s+)?(\d+)\s+"([^"]*)"', tok.t) if tok.k == "pp" else None
        if m:
            line, file = int(m.group(1)) - 1, m.group(2)
        elif tok.k == "id" and tok.t in NOT_MSL:
            out.append(f"{file}:{line}:1: error: '{tok.t}' is not available in MSL")
        else:
            line += tok.t.count("\n")
    return out
