"""How much of the card's copy bandwidth the decode kernels reach."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np

from metal.simulator import operators
from metal.simulator.operators import Device, Projection, ProjectionInputs

from .device import CudaDevice
from .models import MODELS, draw_projection

REPEATS = 20
EXPERTS, COLUMNS, SLOTS = 256, 2880, 4


def _inputs(experts: int, columns: int) -> dict[str, tuple[Projection, ProjectionInputs]]:
    """Each expert once, so that every weight is read exactly once: gate and up, and a down projection with its sum."""
    rng = np.random.default_rng(0)
    gate_up = next(model.gate_up for model in MODELS if model.name == "gpt-oss-20b")
    weights = draw_projection(rng, gate_up.format, experts, 2 * columns, columns)
    x = rng.standard_normal((experts // SLOTS, columns)).astype(np.float16)
    ids = rng.permutation(experts).reshape(-1, SLOTS).astype(np.int32)
    first = ProjectionInputs(x, ids, weights.weights, weights.scales, bias=weights.bias)
    rates = rng.random(ids.shape).astype(np.float32)
    return {"decode": (gate_up, first), "decode and combine": (gate_up, replace(first, expert_weights=rates))}


def compile_for(device: Device) -> None:
    for attributes, inputs in _inputs(8, 96).values():
        operators.expert_gemm(device, attributes, inputs, regime="decode")


def measure(device: CudaDevice) -> None:
    """2.26 GB of weights: times of a launch, medians of 20, beside a copy of the codes on the same card."""
    calls = _inputs(EXPERTS, COLUMNS)
    weights = calls["decode"][1]
    kept = [array for array in (weights.weights, weights.scales, weights.bias) if array is not None]
    moved = weights.weights.nbytes + weights.scales.nbytes
    with device.keeping(kept):
        source = device.pointer(weights.weights)
        target = device.cuda.upload(weights.weights)
        size = ctypes.c_size_t(weights.weights.nbytes)
        copy = device.cuda.median_seconds(lambda: device.cuda("cuMemcpyDtoD_v2", target, source, size), REPEATS)
        copied = 2 * weights.weights.nbytes / copy
        print(f"copy: {copied / 1e9:.0f} GB/s (read and written)", flush=True)
        device.repeats = REPEATS
        for name, (attributes, inputs) in calls.items():
            operators.expert_gemm(device, attributes, inputs, regime="decode")
            achieved = moved / device.seconds
            print(
                f"{name}: {moved / 1e9:.2f} GB in {device.seconds * 1e3:.3f} ms, {achieved / 1e9:.0f} GB/s, "
                f"{100 * achieved / copied:.1f} % of the copy",
                flush=True,
            )
