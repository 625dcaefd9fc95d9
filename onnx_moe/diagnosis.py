"""What is installed, what this machine can run, and what to do about problems."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from onnx_moe import _native
from onnx_moe.errors import OnnxMoeError
from onnx_moe.operators import DOMAIN, VERSION
from onnx_moe.session import InferenceSession

#: What each kernel needs from the processor.
KERNEL_NEEDS = {
    "avx512_amx": "what avx512_vbmi needs, AVX-512 BF16, AMX (tiles and BF16), and a Linux that lets it use them",
    "avx512_vbmi": "AVX-512 F, BW, DQ, VL, VNNI and VBMI",
    "avx512_vnni": "AVX-512 F, BW, DQ, VL and VNNI",
    "avx512": "AVX-512 F, BW, DQ and VL",
    "avx2_vnni": "AVX2, FMA, F16C and AVX-VNNI",
    "avx2": "AVX2, FMA and F16C",
    "neon_i8mm": "an arm64 processor with int8 matrix products (ARMv8.6, or as an option before)",
    "neon_dotprod": "an arm64 processor with dot products (ARMv8.2)",
    "neon": "an arm64 processor",
    "reference": "nothing: it runs anywhere",
}

#: Tokens of a call to one expert that each way to compute a projection serves.
_METAL_PROBES = {"decode": 1, "few rows": 4, "grouped": 64}

_PACKAGES = ("onnx-moe", "onnxruntime", "onnx", "onnx-ir", "onnxscript", "numpy", "torch", "transformers")
_OPTIONAL = {"torch", "transformers"}


@dataclass
class Diagnosis:
    """Facts as (name, value), kernels as (name, state), and problems with their remedies."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    kernels: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def diagnose() -> Diagnosis:
    """Looks at packages, library, processor, kernels and GPU, and runs each kernel once on a known product."""
    diagnosis = Diagnosis()
    diagnosis.facts.append(("Python", f"{platform.python_version()} ({sys.executable})"))
    for package in _PACKAGES:
        diagnosis.facts.append((package, _package_version(package, diagnosis.problems)))
    diagnosis.facts.append(("processor", _processor_name()))
    diagnosis.facts.append(("cores", str(os.cpu_count())))
    _look_at_library(diagnosis)
    _look_at_device(diagnosis)
    return diagnosis


def _package_version(package: str, problems: list[str]) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if package not in _OPTIONAL:
            problems.append(f"{package} is not installed: pip install {package}")
        return "not installed (needed to export: pip install 'onnx-moe[torch]')" if package in _OPTIONAL else "missing"


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def _look_at_library(diagnosis: Diagnosis) -> None:
    try:
        diagnosis.facts.append(("plugin", f"{_native.version()} ({_native.library_path()})"))
        available = _native.kernel_names()
        current = _native.current_kernel()
    except OnnxMoeError as error:
        diagnosis.problems.append(str(error))
        return
    family = "avx" if platform.machine() in ("x86_64", "AMD64") else "neon"
    for name in KERNEL_NEEDS:
        if name != "reference" and not name.startswith(family):
            continue
        if name not in available:
            diagnosis.kernels.append((name, f"not on this machine: needs {KERNEL_NEEDS[name]}"))
            continue
        problem = _try_kernel(name)
        state = "in use" if name == current else "available"
        diagnosis.kernels.append((name, f"{state}, {problem or 'computes correctly'}"))
        if problem:
            diagnosis.problems.append(f"kernel {name}: {problem}")
    if current == "reference":
        diagnosis.problems.append(
            "The portable kernel is in use, which is slow: " + _reference_remedy(os.environ.get("ONNX_MOE_KERNEL"))
        )


def _reference_remedy(environment: str | None) -> str:
    if environment:
        return "unset the environment variable ONNX_MOE_KERNEL."
    return f"this processor has none of {KERNEL_NEEDS['avx2']}; use a newer one where speed matters."


def _look_at_device(diagnosis: Diagnosis) -> None:
    try:
        device = _native.device()
    except OnnxMoeError as error:
        diagnosis.facts.append(("Metal device", f"none: {error}"))
        return
    diagnosis.facts.append(("Metal device", device))
    for regime, tokens in _METAL_PROBES.items():
        problem = _probe("metal", tokens)
        diagnosis.kernels.append((f"metal {regime}", problem or "computes correctly"))
        if problem:
            diagnosis.problems.append(
                f"Metal, {regime} kernel: {problem}. Set the session entry onnx_moe.device to cpu, and report it."
            )


def _try_kernel(name: str) -> str | None:
    """Runs a product of known result with kernel `name`; what went wrong, or None."""
    with _native.use_kernel(name):
        return _probe("cpu", 1)


def _probe(device: str, tokens: int) -> str | None:
    """Runs a product of known result for so many tokens on `device`; what went wrong, or None."""
    try:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("onnx_moe.device", device)
        session = InferenceSession(_probe_model(tokens).SerializeToString(), options)
        (y,) = session.run(None, {"x": np.tile(np.arange(32, dtype=np.float32), (tokens, 1))})
    except OnnxMoeError as error:
        return str(error)
    except Exception as error:  # ONNX Runtime raises types of its own
        return f"ONNX Runtime {onnxruntime.__version__} fails: {error}"
    # Codes 2 (value 1.0) with scale 2^1: twice the sum of 0 … 31.
    return None if np.all(y == 992.0) else f"computes {y.reshape(-1)[:4].tolist()} … instead of 992"


def _probe_model(tokens: int) -> onnx.ModelProto:
    helper, tensor = onnx.helper, onnx.TensorProto
    constants = [
        onnx.numpy_helper.from_array(np.zeros((tokens, 1), np.int32), "ids"),
        onnx.numpy_helper.from_array(np.full((1, 1, 16), 0x22, np.uint8), "weights"),
        onnx.numpy_helper.from_array(np.full((1, 1, 1), 128, np.uint8), "scales"),
    ]
    node = helper.make_node("MoEExpertGemmFP4", ["x", "ids", "weights", "scales"], ["y"], domain=DOMAIN)
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", tensor.FLOAT, [tokens, 32])],
        [helper.make_tensor_value_info("y", tensor.FLOAT, [tokens, 1, 1])],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
