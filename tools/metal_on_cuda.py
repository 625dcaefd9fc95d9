"""The Metal kernels on an NVIDIA GPU: values at real sizes, and the decode kernel's share of the copy bandwidth.

    python -m tools.metal_on_cuda build build/metal_cuda      # translates and compiles: needs nvcc and clang
    python -m tools.metal_on_cuda values build/metal_cuda    # where the card is: needs Python and numpy only
    python -m tools.metal_on_cuda small build/metal_cuda     # the same at small sizes, for compute-sanitizer
    python -m tools.metal_on_cuda bandwidth build/metal_cuda

A simdgroup is a warp and threadgroup memory is shared memory; what this says about Apple's compiler is nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from metal.simulator import operators
from metal.simulator.operators import REGIMES, Launch, Projection, ProjectionInputs
from metal.simulator.plans import build_planner

Array = np.ndarray[Any, Any]

#: The host runtime's planner, compiled: the machine with the card may have no compiler.
PLANNER = "planner.so"

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True)
class Model:
    """The experts of a model."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    gate_up: Projection


_CLAMPED = {"gate_layout": "interleaved", "alpha": 1.702, "beta": 1.0, "limit": 7.0}
MODELS = (
    Model("GLM-4.7-Flash", 2048, 1536, 64, 4, Projection("nvfp4", activation="silu", gated=1)),
    Model("gpt-oss-20b", 2880, 2880, 32, 4, Projection("mxfp4", activation="silu", gated=1, **_CLAMPED)),
    Model("Qwen3-30B-A3B", 2048, 768, 128, 8, Projection("mxfp4", activation="silu", gated=1)),
)
SMALL = tuple(replace(m, hidden_size=96, intermediate_size=48, num_experts=8, top_k=2) for m in MODELS)
BANDWIDTH = Model("2 GB of weights", 2880, 2880, 256, 4, MODELS[1].gate_up)


def draw(
    model: Model, tokens: int, rng: np.random.Generator, weights: ProjectionInputs | None = None
) -> ProjectionInputs:
    """Inputs of the gate and up projection in float16; the weights of another draw when given."""
    x = rng.standard_normal((tokens, model.hidden_size)).astype(np.float16)
    ids = np.argsort(rng.random((tokens, model.num_experts)), axis=-1)[:, : model.top_k].astype(np.int32)
    if weights is not None:
        return replace(weights, x=x, expert_ids=ids)
    rows, columns = 2 * model.intermediate_size, model.hidden_size
    block = {"mxfp4": 32, "nvfp4": 16}[model.gate_up.format]
    codes = rng.integers(0, 256, (model.num_experts, rows, columns // 2), np.uint8)
    low, high = {"mxfp4": (118, 124), "nvfp4": (20, 50)}[model.gate_up.format]
    scales = rng.integers(low, high, (model.num_experts, rows, columns // block), np.uint8)
    bias = rng.standard_normal((model.num_experts, rows)).astype(np.float32)
    return ProjectionInputs(x, ids, codes, scales, bias=bias)


def decode_scales(scales: Array, format: str) -> Array:
    if format == "mxfp4":
        return 2.0 ** (scales.astype(np.float64) - 127)
    exponent, mantissa = (scales >> 3).astype(np.int64), (scales & 7).astype(np.float64)
    return np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def expected_row(attributes: Projection, inputs: ProjectionInputs, token: int, slot: int) -> Array:
    """float64 output [N'] of one assignment."""
    expert = inputs.expert_ids[token, slot]
    codes = inputs.weights[expert]
    values = E2M1[np.stack((codes & 15, codes >> 4), -1).reshape(len(codes), -1)]
    scales = decode_scales(inputs.scales[expert], attributes.format)
    blocks = values.reshape(*scales.shape, -1) * scales[..., None]
    products = blocks.reshape(values.shape) @ inputs.x[token].astype(np.float64)
    assert inputs.bias is not None
    products = products + inputs.bias[expert].astype(np.float64)
    half = len(products) // 2
    interleaved = attributes.gate_layout == "interleaved"
    gate, up = (products[::2], products[1::2]) if interleaved else (products[:half], products[half:])
    if attributes.limit:
        gate, up = np.minimum(gate, attributes.limit), np.clip(up, -attributes.limit, attributes.limit)
    return gate / (1 + np.exp(-attributes.alpha * gate)) * (up + attributes.beta)


class Cuda:
    """The CUDA driver through ctypes: modules, memory, launches. A failure raises with the driver's error name."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(128)
        self("cuDeviceGetName", name, 128, device)
        self.name = name.value.decode()
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)

    def __call__(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(code, ctypes.byref(text))
            raise RuntimeError(f"{function}: {(text.value or b'?').decode()}")

    def upload(self, data: bytes | Array) -> ctypes.c_uint64:
        array = np.ascontiguousarray(np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data)
        pointer = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(array.nbytes, 1)))
        self("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        return pointer

    def download(self, pointer: ctypes.c_uint64, array: Array) -> None:
        self("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), pointer, ctypes.c_size_t(array.nbytes))

    def function(self, cubin: Path, name: str) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuModuleLoad", ctypes.byref(module), str(cubin).encode())
        self("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def synchronize(self) -> None:
        self("cuCtxSynchronize")


def cubin_name(launch: Launch) -> str:
    values = "_".join(f"{index}-{int(value)}" for index, value in sorted(launch.constants.items()))
    return f"{launch.kernel}_{launch.element}_{values}.cubin"


@dataclass(frozen=True)
class CompilingDevice:
    """Compiles what a launch needs and runs nothing."""

    folder: Path

    def run(self, launch: Launch) -> None:
        # Only here: translating needs a preprocessor, which the machine with the card may lack.
        from metal.simulator.device import library
        from metal.simulator.translator import SHIM

        path = self.folder / cubin_name(launch)
        if path.exists():
            return
        source = path.with_suffix(".cu")
        source.write_text(library(launch.file, launch.element, "cuda").source([launch.kernel], dict(launch.constants)))
        # No contraction beyond the kernels' own fma, as Metal without fast math.
        flags = ["-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-w", "-arch=sm_90"]
        subprocess.run(["nvcc", *flags, f"-I{SHIM}", "-cubin", str(source), "-o", str(path)], check=True)
        print("compiled", path.name, flush=True)


@dataclass
class CudaDevice:
    """Launches prebuilt kernels. Arrays that `keep` holds stay on the card; others travel with every launch."""

    folder: Path
    cuda: Cuda = field(default_factory=Cuda)
    kept: dict[int, tuple[Array, ctypes.c_uint64]] = field(default_factory=dict)
    functions: dict[str, ctypes.c_void_p] = field(default_factory=dict)
    repeats: int = 1
    seconds: float = 0.0

    def keep(self, *arrays: Array) -> None:
        for array in arrays:
            self.kept[id(array)] = (array, self.cuda.upload(array))

    def forget(self) -> None:
        for _, pointer in self.kept.values():
            self.cuda("cuMemFree_v2", pointer)
        self.kept.clear()

    def run(self, launch: Launch) -> None:
        name = cubin_name(launch)
        if name not in self.functions:
            self.functions[name] = self.cuda.function(self.folder / name, f"mslk_{launch.kernel}")
        own: list[tuple[Any, ctypes.c_uint64]] = []
        pointers = np.zeros(len(launch.buffers), np.uint64)
        for index, buffer in enumerate(launch.buffers):
            if id(buffer) in self.kept:
                pointers[index] = self.kept[id(buffer)][1].value
                continue
            own.append((buffer, self.cuda.upload(buffer if isinstance(buffer, np.ndarray) else bytes(buffer))))
            pointers[index] = own[-1][1].value or 0
        own.append((None, self.cuda.upload(pointers)))
        own.append((None, self.cuda.upload(np.zeros(8, np.uint32))))
        arguments = [own[-2][1], own[-1][1]]
        packed = (ctypes.c_void_p * 2)(*(ctypes.addressof(argument) for argument in arguments))
        times = []
        for _ in range(self.repeats):
            self.cuda.synchronize()
            start = time.perf_counter()
            grid = [*launch.threadgroups, 1, launch.threads, 1, 1, 0]
            self.cuda("cuLaunchKernel", self.functions[name], *grid, None, packed, None)
            self.cuda.synchronize()
            times.append(time.perf_counter() - start)
        self.seconds = float(np.median(times))
        for buffer, pointer in own:
            if isinstance(buffer, np.ndarray) and buffer.flags.writeable:
                self.cuda.download(pointer, buffer)
            self.cuda("cuMemFree_v2", pointer)


def regimes(tokens: int) -> tuple[str, ...]:
    """All, but for those that would only take long at this size."""
    if tokens == 1:
        return ("decode",)
    return REGIMES if tokens <= 64 else REGIMES[1:]


def values(device: CudaDevice, models: tuple[Model, ...], token_counts: tuple[int, ...]) -> bool:
    """Both regimes at each size against float64 on sampled assignments, and against each other everywhere."""
    right = True
    for model in models:
        rng = np.random.default_rng(len(model.name))
        weights = draw(model, 1, rng)
        assert weights.bias is not None
        device.keep(weights.weights, weights.scales, weights.bias)
        for tokens in token_counts:
            inputs = draw(model, tokens, rng, weights)
            results = {}
            for regime in regimes(tokens):
                y = operators.expert_gemm(device, model.gate_up, inputs, regime=regime).astype(np.float64)
                samples = rng.integers(0, [tokens, model.top_k], (4, 2))
                expected = np.stack([expected_row(model.gate_up, inputs, *map(int, sample)) for sample in samples])
                actual = np.stack([y[tuple(sample)] for sample in samples])
                error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
                results[regime] = y
                right &= bool(error <= 1e-3)
                print(f"{model.name:16} {tokens:5} tokens  {regime:7}  relative error {error:.2e}", flush=True)
            for regime, y in results.items():
                if regime == "grouped" or "grouped" not in results:
                    continue
                difference = np.linalg.norm(results["grouped"] - y) / np.linalg.norm(y)
                right &= bool(difference <= 1e-3)
                print(f"{model.name:16} {tokens:5} tokens  {regime} against grouped, all outputs: {difference:.2e}")
        device.forget()
    return right


def bandwidth(device: CudaDevice) -> None:
    """Each of 256 experts once, so that every weight is read exactly once; against a copy on the same card."""
    rng = np.random.default_rng(0)
    model = BANDWIDTH
    inputs = draw(model, model.num_experts // model.top_k, rng)
    assert inputs.bias is not None
    inputs = replace(inputs, expert_ids=rng.permutation(model.num_experts).reshape(-1, model.top_k).astype(np.int32))
    device.keep(inputs.weights, inputs.scales, inputs.bias)
    device.repeats = 20
    operators.expert_gemm(device, model.gate_up, inputs, regime="decode")
    moved = inputs.weights.nbytes + inputs.scales.nbytes
    achieved = moved / device.seconds
    source = device.kept[id(inputs.weights)][1]
    target = device.cuda.upload(inputs.weights)
    times = []
    for _ in range(20):
        device.cuda.synchronize()
        start = time.perf_counter()
        device.cuda("cuMemcpyDtoD_v2", target, source, ctypes.c_size_t(inputs.weights.nbytes))
        device.cuda.synchronize()
        times.append(time.perf_counter() - start)
    copied = 2 * inputs.weights.nbytes / float(np.median(times))
    print(f"decode kernel: {moved / 1e9:.2f} GB in {device.seconds * 1e3:.3f} ms, {achieved / 1e9:.0f} GB/s")
    print(f"copy: {copied / 1e9:.0f} GB/s (read and written); decode reaches {100 * achieved / copied:.0f} %")


def build(folder: Path) -> None:
    """Compiles every kernel that the other commands launch."""
    folder.mkdir(parents=True, exist_ok=True)
    device = CompilingDevice(folder)
    for model in SMALL:
        inputs = draw(model, 8, np.random.default_rng(0))
        for regime in REGIMES:
            operators.expert_gemm(device, model.gate_up, inputs, regime=regime)
    build_planner(folder / PLANNER)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.metal_on_cuda", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("build", "values", "small", "bandwidth"))
    parser.add_argument("folder", type=Path, help="where the compiled kernels are, or go")
    options = parser.parse_args(arguments)
    if options.command == "build":
        build(options.folder)
        return 0
    os.environ["ONNX_MOE_PLANNER"] = str((options.folder / PLANNER).resolve())
    device = CudaDevice(options.folder)
    print(device.cuda.name)
    commands: dict[str, Callable[[], bool | None]] = {
        "values": lambda: values(device, MODELS, (1, 7, 64, 512, 4096)),
        "small": lambda: values(device, SMALL, (1, 7, 65)),
        "bandwidth": lambda: bandwidth(device),
    }
    return 0 if commands[options.command]() in (True, None) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
