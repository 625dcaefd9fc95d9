"""The operators through the Metal kernels, launched as the host runtime plans it (plans.py).

Every array is a host array; `Device.run` updates those that a kernel writes. The element type of activations is the
dtype of the hidden states (float32, float16 or ml_dtypes.bfloat16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from .plans import Plan, PlannedLaunch, make_plan

Array = np.ndarray[Any, Any]

FORMATS = ("mxfp4", "nvfp4", "fp4")
#: ElementType of ops/core/element_type.h.
ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
#: How a projection may be computed; "auto" leaves it to the planner.
REGIMES = ("decode", "few", "grouped")


@dataclass(frozen=True)
class Launch:
    """One dispatch: `threadgroups` of `threads` threads each."""

    file: str
    kernel: str
    element: str
    constants: Mapping[int, int]
    buffers: Sequence[Array]
    threadgroups: tuple[int, int]
    threads: int


class Device(Protocol):
    """What runs a kernel: fibers of this machine, or a GPU."""

    def run(self, launch: Launch) -> None: ...


@dataclass(frozen=True)
class Projection:
    """Attributes of MoEExpertGemmFP4. Metal computes every accuracy_level at level 0."""

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
class ProjectionWeights:
    """An experts' projection: weights [E, N, K/2], scales [E, N, K/block], global_scale [E] or [E, 2], bias [E, N]."""

    weights: Array
    scales: Array
    global_scale: Array | None = None
    bias: Array | None = None


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

    @property
    def projection(self) -> ProjectionWeights:
        return ProjectionWeights(self.weights, self.scales, self.global_scale, self.bias)


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

    @property
    def slots(self) -> int:
        return self.top_k + self.num_shared_experts


@dataclass(frozen=True)
class RouterInputs:
    """Inputs of MoERouter, with its shapes."""

    hidden_states: Array
    gate_weight: Array | None = None
    gate_bias: Array | None = None
    correction_bias: Array | None = None


@dataclass
class Call:
    """An operator's tensors by the names of metal/plan/plan.h, and its description for the planner."""

    description: dict[str, Any]
    tensors: dict[str, Array] = field(default_factory=dict)

    def give(self, **tensors: Array | None) -> None:
        """Adds tensors; of optional ones the planner is told the type, or that they are not there."""
        for name, array in tensors.items():
            if array is not None:
                self.tensors[name] = array
                self.description[f"{name}_type"] = ELEMENT_TYPES.get(array.dtype.name, 0)

    def plan(self) -> Plan:
        return make_plan(self.description)

    def run(self, device: Device) -> list[Array]:
        """Runs the plan; its scratch memory, for who wants to look."""
        plan = self.plan()
        # 0xFF is NaN and an index out of range: memory that a kernel reads before it was written shows.
        scratch: list[Array] = [
            np.full(memory.bytes, 0 if memory.zeroed else 0xFF, np.uint8) for memory in plan.scratch
        ]
        for launch in plan.launches:
            device.run(self._launch(launch, scratch))
        return scratch

    def _launch(self, planned: PlannedLaunch, scratch: list[Array]) -> Launch:
        buffers = []
        for argument in planned.arguments:
            if argument.bytes is not None:
                buffers.append(np.frombuffer(argument.bytes, np.uint8))
            elif argument.scratch is not None:
                buffers.append(scratch[argument.scratch])
            else:
                buffers.append(_raw(self.tensors[argument.tensor]) if argument.tensor else np.zeros(16, np.uint8))
        constants = dict(enumerate(planned.constants))
        return Launch(
            planned.file,
            planned.kernel,
            planned.element,
            constants,
            buffers,
            planned.threadgroups,
            planned.threads,
        )


def _raw(array: Array) -> Array:
    """The same memory in a type that numpy knows by itself."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _projection_description(attributes: Projection, weights: ProjectionWeights) -> dict[str, Any]:
    experts, rows, half_columns = weights.weights.shape
    described = asdict(attributes) | {"format": FORMATS.index(attributes.format)}
    del described["accuracy_level"]
    return described | {"num_experts": experts, **_sizes("", weights, rows, 2 * half_columns)}


def _sizes(prefix: str, weights: ProjectionWeights, rows: int, columns: int) -> dict[str, Any]:
    scales = 1 if weights.global_scale is None else weights.global_scale.size // len(weights.weights)
    return {f"{prefix}rows": rows, f"{prefix}columns": columns, f"{prefix}global_scales": scales}


def _router_description(attributes: Router, inputs: RouterInputs) -> dict[str, Any]:
    hidden = inputs.hidden_states
    experts = hidden.shape[-1] if inputs.gate_weight is None else len(inputs.gate_weight)
    sizes = {"tokens": hidden.size // hidden.shape[-1], "hidden_size": hidden.shape[-1], "routed_experts": experts}
    return asdict(attributes) | sizes | {"type": ELEMENT_TYPES[hidden.dtype.name]}


def projection_call(attributes: Projection, inputs: ProjectionInputs, y: Array, regime: str = "auto") -> Call:
    """A call of MoEExpertGemmFP4 into `y`."""
    slots = inputs.expert_ids.shape[-1]
    call = Call(
        _projection_description(attributes, inputs.projection)
        | {"operator": "projection", "regime": regime, "type": ELEMENT_TYPES[inputs.x.dtype.name]}
        | {"tokens": inputs.expert_ids.size // slots, "slots": slots}
        | {"x_per_slot": int(inputs.x.ndim == inputs.expert_ids.ndim + 1)}
    )
    call.give(**vars(inputs), y=y)
    return call


def expert_gemm(device: Device, attributes: Projection, inputs: ProjectionInputs, *, regime: str = "auto") -> Array:
    """y [..., k, N'], or [..., N'] with expert_weights."""
    rows = inputs.weights.shape[1] // (2 if attributes.gated else 1)
    leading = inputs.expert_ids.shape if inputs.expert_weights is None else inputs.expert_ids.shape[:-1]
    y = np.zeros((*leading, rows), inputs.x.dtype)
    if inputs.expert_ids.size:
        projection_call(attributes, inputs, y, regime).run(device)
    return y


@dataclass(frozen=True)
class Groups:
    """Assignments grouped by expert: offsets [E], grouped [T·k], tiles [at most, 3] of which tile_count are used."""

    offsets: Array
    grouped: Array
    tiles: Array
    tile_count: int


def group(device: Device, expert_ids: Array, num_experts: int, tile_rows: int) -> Groups:
    """Stable counting sort of the assignments by expert; and the tiles of at most tile_rows that are not empty."""
    call = Call(
        {"operator": "grouping", "assignments": expert_ids.size, "num_experts": num_experts, "tile_rows": tile_rows}
    )
    call.give(expert_ids=expert_ids)
    offsets, grouped, tiles, tile_count, _counts = (memory.view(np.uint32) for memory in call.run(device))
    return Groups(offsets, grouped, tiles.reshape(-1, 3), int(tile_count[0]))


def router(device: Device, attributes: Router, inputs: RouterInputs) -> tuple[Array, Array, Array]:
    """expert_ids [..., k], expert_weights [..., k], router_logits [..., E]."""
    description = _router_description(attributes, inputs)
    leading = inputs.hidden_states.shape[:-1]
    ids = np.full((*leading, attributes.slots), -1, np.int32)
    weights = np.full((*leading, attributes.slots), np.nan, np.float32)
    logits = np.full((*leading, description["routed_experts"]), np.nan, np.float32)
    if description["tokens"]:
        call = Call(description | {"operator": "router"})
        call.give(x=inputs.hidden_states, gate_weight=inputs.gate_weight, gate_bias=inputs.gate_bias)
        call.give(correction_bias=inputs.correction_bias)
        call.give(expert_ids=ids, expert_weights=weights, router_logits=logits)
        call.run(device)
    return ids, weights, logits


def block_call(
    attributes: tuple[Router, Projection],
    inputs: RouterInputs,
    projections: tuple[ProjectionWeights, ProjectionWeights],
    y: Array,
    regime: str = "auto",
) -> Call:
    """A call of MoEBlockFP4 into `y` [..., M]."""
    gate_up, down = projections
    call = Call(
        _projection_description(attributes[1], gate_up)
        | _sizes("down_", down, down.weights.shape[1], 2 * down.weights.shape[2])
        | _router_description(attributes[0], inputs)
        | {"operator": "block", "regime": regime}
    )
    call.give(x=inputs.hidden_states, gate_weight=inputs.gate_weight, gate_bias=inputs.gate_bias)
    call.give(correction_bias=inputs.correction_bias, **vars(gate_up))
    call.give(**{f"down_{name}": array for name, array in vars(down).items()}, y=y)
    return call
