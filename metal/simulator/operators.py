"""The operators through the Metal kernels: which kernels, in which order, over which grid.

Every array is a host array; `Device.run` updates those that a kernel writes. The element type of activations is the
dtype of `x` (float32, float16 or ml_dtypes.bfloat16).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
Triple = tuple[int, int, int]

FORMATS = ("mxfp4", "nvfp4", "fp4")
BLOCK_SIZES = {"mxfp4": 32, "nvfp4": 16, "fp4": 128}
FUNCTIONS = ("none", "silu", "gelu", "gelu_tanh", "relu", "relu2")
SCORINGS = ("softmax", "sigmoid", "sqrt_softplus", "softmax_after_topk", "sigmoid_after_topk")

#: From this many assignments an expert on average, tiles of simdgroup matrices pay for grouping.
GROUPED_FROM = 4.0
TILE_ROWS = 32
SIMDGROUPS = 4
#: Weight rows that a simdgroup of the decode kernel computes: gate and up rows of its columns.
DECODE_ROWS = 4


class ExpertGemmArguments(ctypes.Structure):
    """arguments.h"""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("assignments", "slots", "num_experts", "rows", "columns")),
        *((name, ctypes.c_uint32) for name in ("output_columns", "x_per_slot", "global_scales")),
        *((name, ctypes.c_float) for name in ("alpha", "beta", "limit")),
    )


class GroupingArguments(ctypes.Structure):
    """arguments.h"""

    _fields_ = (("assignments", ctypes.c_uint32), ("num_experts", ctypes.c_uint32))


class CombineArguments(ctypes.Structure):
    """arguments.h"""

    _fields_ = tuple((name, ctypes.c_uint32) for name in ("tokens", "slots", "columns"))


class RouterArguments(ctypes.Structure):
    """arguments.h"""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("tokens", "hidden_size", "num_experts", "top_k", "num_groups")),
        *((name, ctypes.c_uint32) for name in ("top_k_groups", "num_shared_experts")),
        *((name, ctypes.c_float) for name in ("norm_epsilon", "norm_min", "scaling_factor")),
    )


@dataclass(frozen=True)
class Launch:
    """One dispatch: `threadgroups` of `threads` threads each."""

    file: str
    kernel: str
    element: str
    constants: Mapping[int, int]
    buffers: Sequence[Any]
    threadgroups: Triple
    threads: int


class Device(Protocol):
    """What runs a kernel: fibers of this machine, or a GPU."""

    def run(self, launch: Launch) -> None: ...


@dataclass(frozen=True)
class Projection:
    """Attributes of MoEExpertGemmFP4."""

    format: str = "mxfp4"
    block_size: int = 0
    activation: str = "none"
    gated: int = 0
    gate_layout: str = "concatenated"
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0
    accuracy_level: int = 0


@dataclass(frozen=True)
class ProjectionInputs:
    """Inputs of MoEExpertGemmFP4, with its shapes."""

    x: Array
    expert_ids: Array
    weights: Array
    scales: Array
    global_scale: Array | None = None
    bias: Array | None = None
    expert_weights: Array | None = None


def element_name(dtype: np.dtype[Any]) -> str:
    return {"float32": "float", "float16": "half", "bfloat16": "bfloat"}[dtype.name]


def kind_of(array: Array | None) -> int:
    """0 absent, 1 float, 2 the element type."""
    return 0 if array is None else 1 if array.dtype == np.float32 else 2


def raw(array: Array | None) -> Array:
    """The array as a kernel takes it; absent ones as a few bytes that are never read."""
    if array is None:
        return np.zeros(16, np.uint8)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def expert_gemm(
    device: Device, attributes: Projection, inputs: ProjectionInputs, *, grouped: bool | None = None
) -> Array:
    """y [..., k, N'], or [..., N'] with expert_weights. `grouped` overrides the choice of the regime."""
    experts, rows = inputs.weights.shape[:2]
    slots = inputs.expert_ids.shape[-1]
    assignments = inputs.expert_ids.size
    outputs = rows // 2 if attributes.gated else rows
    element = element_name(inputs.x.dtype)
    combine = inputs.expert_weights is not None
    y = np.zeros((assignments, outputs), np.float32 if combine else inputs.x.dtype)
    if assignments:
        arguments = ExpertGemmArguments(
            *(assignments, slots, experts, rows, inputs.x.shape[-1], outputs),
            int(inputs.x.ndim == inputs.expert_ids.ndim + 1),
            1 if inputs.global_scale is None else inputs.global_scale.size // experts,
            *(attributes.alpha, attributes.beta, attributes.limit),
        )
        constants = projection_constants(attributes, inputs)
        if grouped is None:
            grouped = assignments >= GROUPED_FROM * experts
        project = _project_grouped if grouped else _project_rows
        project(device, element, constants, arguments, inputs, y)
    if not combine:
        return y.reshape(*inputs.expert_ids.shape, outputs)
    tokens = assignments // slots
    combined = np.zeros((tokens, outputs), inputs.x.dtype)
    if tokens:
        buffers = [CombineArguments(tokens, slots, outputs), y, inputs.expert_weights, raw(combined)]
        device.run(Launch("combine", "combine", element, {}, buffers, (-(-outputs // 64), tokens, 1), 64))
    return combined.reshape(*inputs.expert_ids.shape[:-1], outputs)


def projection_constants(attributes: Projection, inputs: ProjectionInputs) -> dict[int, int]:
    """Function constants by index, as projection.h numbers them."""
    bias = kind_of(inputs.bias)
    return {
        0: FORMATS.index(attributes.format),
        1: attributes.block_size or BLOCK_SIZES[attributes.format],
        2: FUNCTIONS.index(attributes.activation),
        3: attributes.gated,
        4: int(attributes.gate_layout == "interleaved"),
        5: int(inputs.global_scale is not None),
        6: bias,
        7: int(inputs.expert_weights is not None),
    }


def _weight_buffers(inputs: ProjectionInputs) -> list[Array]:
    return [inputs.weights, inputs.scales, raw(inputs.global_scale), raw(inputs.bias)]


def _project_rows(
    device: Device,
    element: str,
    constants: dict[int, int],
    arguments: ExpertGemmArguments,
    inputs: ProjectionInputs,
    y: Array,
) -> None:
    buffers = [arguments, raw(inputs.x), inputs.expert_ids, *_weight_buffers(inputs), raw(y)]
    columns = SIMDGROUPS * DECODE_ROWS // (arguments.rows // arguments.output_columns)
    grid = (-(-arguments.output_columns // columns), arguments.assignments, 1)
    device.run(Launch("decode", "expert_decode", element, constants, buffers, grid, 32 * SIMDGROUPS))


def _project_grouped(
    device: Device,
    element: str,
    constants: dict[int, int],
    arguments: ExpertGemmArguments,
    inputs: ProjectionInputs,
    y: Array,
) -> None:
    groups = group(device, inputs.expert_ids, arguments.num_experts)
    per_tile = TILE_ROWS // 2 if constants[3] else TILE_ROWS
    grid = (-(-arguments.output_columns // per_tile), len(groups.tiles), 1)
    buffers = [
        *(arguments, raw(inputs.x), groups.grouped, groups.tiles, groups.tile_count),
        *_weight_buffers(inputs),
        raw(y),
    ]
    device.run(Launch("grouped", "expert_grouped", element, constants, buffers, grid, 128))


@dataclass(frozen=True)
class Groups:
    """Assignments grouped by expert: offsets [E], grouped [T·k], tiles [at most, 3] of which tile_count are used."""

    offsets: Array
    grouped: Array
    tiles: Array
    tile_count: Array


def group(device: Device, expert_ids: Array, num_experts: int) -> Groups:
    """Counting sort of the assignments by expert, stable; and the tiles of TILE_ROWS that are not empty."""
    arguments = GroupingArguments(expert_ids.size, num_experts)
    counts, offsets = np.zeros(num_experts, np.uint32), np.zeros(num_experts, np.uint32)
    grouped, tile_count = np.zeros(expert_ids.size, np.uint32), np.zeros(1, np.uint32)
    # An expert fills whole tiles but for its last: no more tiles than this can occur.
    most = min(expert_ids.size, expert_ids.size // TILE_ROWS + num_experts)
    tiles = np.zeros((most, 3), np.uint32)
    grid = (-(-num_experts // 8), 1, 1)
    for kernel, buffers, threadgroups, threads in (
        ("count_assignments", [arguments, expert_ids, counts], grid, 256),
        ("plan_tiles", [arguments, counts, offsets, tiles, tile_count], (1, 1, 1), 32),
        ("scatter_assignments", [arguments, expert_ids, offsets, grouped], grid, 256),
    ):
        device.run(Launch("grouping", kernel, "float", {}, buffers, threadgroups, threads))
    return Groups(offsets, grouped, tiles, tile_count)


@dataclass(frozen=True)
class Router:
    """Attributes of MoERouter."""

    top_k: int
    scoring: str = "softmax"
    normalize: int = 0
    norm_epsilon: float = 0.0
    norm_min: float = 0.0
    scaling_factor: float = 1.0
    num_groups: int = 1
    top_k_groups: int = 1
    group_scoring: str = "max"
    num_shared_experts: int = 0


@dataclass(frozen=True)
class RouterInputs:
    """Inputs of MoERouter, with its shapes."""

    hidden_states: Array
    gate_weight: Array | None = None
    gate_bias: Array | None = None
    correction_bias: Array | None = None


def router(device: Device, attributes: Router, inputs: RouterInputs) -> tuple[Array, Array, Array]:
    """expert_ids [..., k], expert_weights [..., k], router_logits [..., E]."""
    hidden = inputs.hidden_states
    experts = hidden.shape[-1] if inputs.gate_weight is None else len(inputs.gate_weight)
    leading = hidden.shape[:-1]
    tokens = int(np.prod(leading))
    slots = attributes.top_k + attributes.num_shared_experts
    ids, weights = np.full((*leading, slots), -1, np.int32), np.full((*leading, slots), np.nan, np.float32)
    logits = np.full((*leading, experts), np.nan, np.float32)
    if tokens:
        arguments = RouterArguments(
            *(tokens, hidden.shape[-1], experts, attributes.top_k, attributes.num_groups, attributes.top_k_groups),
            attributes.num_shared_experts,
            *(attributes.norm_epsilon, attributes.norm_min, attributes.scaling_factor),
        )
        constants = {
            0: SCORINGS.index(attributes.scoring),
            1: attributes.normalize,
            2: int(attributes.group_scoring == "top2_sum"),
            3: kind_of(inputs.gate_weight),
            4: kind_of(inputs.gate_bias),
            5: int(inputs.correction_bias is not None),
        }
        buffers = [
            *(arguments, raw(hidden), raw(inputs.gate_weight), raw(inputs.gate_bias), raw(inputs.correction_bias)),
            *(ids, weights, logits),
        ]
        element = element_name(hidden.dtype)
        device.run(Launch("router", "router", element, constants, buffers, (tokens, 1, 1), 32 * 8))
    return ids, weights, logits
