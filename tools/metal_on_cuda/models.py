"""The experts and routers of three models at their real sizes, and random inputs for them in float16."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from metal.simulator.operators import Projection, ProjectionWeights, Router, RouterInputs

Array = np.ndarray[Any, Any]

_BLOCK = {"mxfp4": 32, "nvfp4": 16}
#: Scale codes from 2^-9 to 2^-3: a block's intermediate and output stay in float16's range.
_SCALE_CODES = {"mxfp4": (118, 124), "nvfp4": (8, 32)}


@dataclass(frozen=True)
class Model:
    """A model's MoE block; its down projection has the format of the gate and up projection."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    router: Router
    gate_up: Projection
    gate_bias: bool = False
    correction_bias: bool = False

    @property
    def down(self) -> Projection:
        return Projection(self.gate_up.format)


MODELS = (
    Model(
        "GLM-4.7-Flash",
        2048,
        1536,
        64,
        Router(4, "sigmoid", normalize=1, norm_epsilon=1e-20, scaling_factor=1.8),
        Projection("nvfp4", activation="silu", gated=1),
        correction_bias=True,
    ),
    Model(
        "gpt-oss-20b",
        2880,
        2880,
        32,
        Router(4, "softmax_after_topk"),
        Projection(
            "mxfp4",
            activation="silu",
            gated=1,
            gate_layout="interleaved",
            alpha=1.702,
            beta=1.0,
            limit=7.0,
        ),
        gate_bias=True,
    ),
    Model(
        "Qwen3-30B-A3B",
        2048,
        768,
        128,
        Router(8, "softmax", normalize=1),
        Projection("mxfp4", activation="silu", gated=1),
    ),
)
SMALL = tuple(
    replace(model, hidden_size=96, intermediate_size=64, num_experts=8, router=replace(model.router, top_k=2))
    for model in MODELS
)


@dataclass(frozen=True)
class Block:
    """A model's weights: gate [E, H] with its biases [E], and both projections."""

    gate: Array
    gate_bias: Array | None
    correction_bias: Array | None
    gate_up: ProjectionWeights
    down: ProjectionWeights

    def arrays(self) -> list[Array]:
        given = [self.gate, self.gate_bias, self.correction_bias]
        for projection in (self.gate_up, self.down):
            given += [projection.weights, projection.scales, projection.bias]
        return [array for array in given if array is not None]

    def routing(self, x: Array) -> RouterInputs:
        return RouterInputs(x, self.gate, self.gate_bias, self.correction_bias)


def draw_projection(rng: np.random.Generator, format: str, experts: int, rows: int, columns: int) -> ProjectionWeights:
    codes = rng.integers(0, 256, (experts, rows, columns // 2), np.uint8)
    scales = rng.integers(*_SCALE_CODES[format], (experts, rows, columns // _BLOCK[format]), np.uint8)
    return ProjectionWeights(codes, scales, bias=rng.standard_normal((experts, rows)).astype(np.float32))


def draw_block(rng: np.random.Generator, model: Model) -> Block:
    experts, hidden, intermediate = model.num_experts, model.hidden_size, model.intermediate_size

    def bias(wanted: bool) -> Array | None:
        return rng.uniform(-0.1, 0.1, experts).astype(np.float32) if wanted else None

    return Block(
        (rng.standard_normal((experts, hidden)) / np.sqrt(hidden)).astype(np.float16),
        bias(model.gate_bias),
        bias(model.correction_bias),
        draw_projection(rng, model.gate_up.format, experts, 2 * intermediate, hidden),
        draw_projection(rng, model.gate_up.format, experts, hidden, intermediate),
    )


def draw_activations(rng: np.random.Generator, model: Model, tokens: int) -> Array:
    return rng.standard_normal((tokens, model.hidden_size)).astype(np.float16)
