"""Inputs of the cases: random, at a size where neither float16 overflows nor sums cancel to nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from onnx_moe.layout import CODE_BYTES, SCALES, interleave

from .cases import GemmCase, RouterCase, case_seed

Array = np.ndarray

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class GemmInputs:
    """The inputs of MoEExpertGemmFP4 in order; None where the node omits one."""

    x: Array
    expert_ids: Array
    weights: Array
    scales: Array
    global_scale: Array | None
    bias: Array | None
    expert_weights: Array | None


@dataclass(frozen=True)
class RouterInputs:
    """The inputs of MoERouter in order; None where the node omits one."""

    hidden_states: Array
    gate_weight: Array | None
    gate_bias: Array | None
    correction_bias: Array | None
    next_gate_weight: Array | None


def draw_gemm_inputs(case: GemmCase) -> GemmInputs:
    rng = np.random.default_rng(case_seed(case))
    dtype = DTYPES[case.dtype]
    assignments = (*case.tokens, case.slots)
    x = rng.standard_normal((*(assignments if case.x_per_slot else case.tokens), case.columns))
    if case.weights == "x_nan":
        x[rng.random(x.shape) < 0.01] = np.nan
    if case.weights == "x_spiky":
        x[..., ::32] *= 1000
    if case.weights in ("scale_nan", "positive"):
        x = np.abs(x)
    if (case.format, case.weights) == ("mxfp4", "scale_zero"):
        x *= 1e30  # the weights are 2^-127 and less
    weights, scales = draw_weights(case, rng)
    factors = (case.num_experts, 2) if case.global_scale == "halves" else (case.num_experts,)
    global_scale = rng.uniform(0.25, 2, factors).astype(np.float32)
    bias = rng.standard_normal((case.num_experts, case.rows))
    expert_weights = rng.standard_normal(assignments) * (rng.random(assignments) < 0.9)
    return GemmInputs(
        x=x.astype(dtype),
        expert_ids=draw_expert_ids(case, rng).astype(np.int32),
        weights=weights,
        scales=scales,
        global_scale=None if case.global_scale == "absent" else global_scale,
        bias=None if case.bias == "absent" else bias.astype(dtype if case.bias == "same" else np.float32),
        expert_weights=expert_weights.astype(np.float32) if case.combine else None,
    )


def draw_expert_ids(case: GemmCase, rng: np.random.Generator) -> Array:
    shape = (*case.tokens, case.slots)
    if case.ids == "single":
        return np.full(shape, case.num_experts - 1)
    if case.ids == "idle":  # the first and the last expert, and perhaps one more: the others have nothing to do
        return rng.choice([0, case.num_experts // 3, case.num_experts - 1], shape)
    if case.ids == "repeated":  # a token's slots all ask for one expert
        return np.repeat(rng.integers(0, case.num_experts, (*case.tokens, 1)), case.slots, axis=-1)
    return rng.integers(0, case.num_experts, shape)


def draw_weights(case: GemmCase, rng: np.random.Generator) -> tuple[Array, Array]:
    """Codes uint8 [E, N, K/2] and scales [E, N, K/block] of the kind `case.weights`."""
    codes = rng.integers(0, 256, (case.num_experts, case.rows, case.columns // 2), np.uint8)
    if case.weights == "codes_zero":  # both zeros
        codes &= 0x88
    if case.weights == "scale_nan":  # positive terms only, so that a scale taken for an infinity gives no NaN
        codes = codes & 0x77 | 0x11
    if case.weights == "positive":
        codes &= 0x77
    shape = (case.num_experts, case.rows, case.blocks)
    scales = _SCALES[case.format](case.weights, shape, rng)
    if case.weights == "blocks_zero":  # as a quantiser leaves padding: zeros with the least scale, in groups of rows
        padding = np.repeat(rng.random((*shape[:1], shape[1] // 16, shape[2])) < 0.3, 16, axis=1)
        scales[padding] = 0
        codes.reshape(*shape, -1)[padding] &= 0x88
        if case.weight_layout == "interleaved":
            codes, scales = interleave(codes, CODE_BYTES), interleave(scales, SCALES)
    return codes, scales


def _e8m0_scales(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    scales = rng.integers(121, 127, shape, np.uint8)
    if kind == "scale_zero":
        scales[...] = 0
    if kind == "scale_nan":
        scales[rng.random(shape) < 0.05] = 0xFF
    if kind == "scale_range":
        scales = rng.integers(0, 127 + 30, shape, np.uint8)
    return scales


def _e4m3_scales(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    scales = rng.integers(0x18, 0x30, shape, np.uint8)
    special = rng.random(shape) < 0.3
    sign = rng.choice(np.array([0, 0x80], np.uint8), shape)
    if kind == "scale_zero":
        scales[special] = sign[special]
    if kind == "scale_nan":
        scales[rng.random(shape) < 0.05] = 0x7F
        scales |= sign
    if kind == "scale_negative":
        scales |= sign
    if kind == "scale_subnormal":
        scales = rng.integers(0, 8, shape, np.uint8) | sign
    if kind == "scale_all":
        scales = rng.choice(np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8), shape)
    return scales


def _float16_scales(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    scales = rng.uniform(0.02, 0.2, shape)
    if kind == "scale_zero":
        scales[rng.random(shape) < 0.3] = -0.0
    if kind == "scale_nan":
        scales[rng.random(shape) < 0.05] = np.nan
    if kind == "scale_negative":
        scales *= rng.choice([-1, 1], shape)
    if kind == "scale_subnormal":
        scales = rng.integers(-1023, 1024, shape) * 2.0**-24
    return scales.astype(np.float16)


_SCALES: dict[str, Callable[[str, tuple[int, ...], np.random.Generator], Array]] = {
    "mxfp4": _e8m0_scales,
    "nvfp4": _e4m3_scales,
    "fp4": _float16_scales,
}


def _next_gate(case: RouterCase) -> Array | None:
    """Of a router with other experts. What it would choose must not matter, so it holds a NaN too."""
    if case.next_gate == "absent":
        return None
    gate = np.random.default_rng(0).standard_normal((case.num_experts + 3, case.hidden_size))
    gate[0] = np.nan
    return gate.astype(np.float32 if case.next_gate == "float" else DTYPES[case.dtype])


def draw_router_inputs(case: RouterCase) -> RouterInputs:
    rng = np.random.default_rng(case_seed(case))
    dtype = DTYPES[case.dtype]
    features = case.num_experts if case.gate == "absent" else case.hidden_size
    hidden_states = rng.standard_normal((*case.tokens, features))
    gate_weight = rng.standard_normal((case.num_experts, case.hidden_size)) / np.sqrt(case.hidden_size)
    gate_bias = rng.standard_normal(case.num_experts)
    correction_bias = 0.2 * rng.standard_normal(case.num_experts)
    if case.values == "ties":  # small integers: every sum is exact, so that equal logits are equal everywhere
        hidden_states, gate_weight, gate_bias, correction_bias = (
            np.clip(np.round(2 * values), -3, 3) for values in (hidden_states, gate_weight, gate_bias, correction_bias)
        )
    if case.values == "equal":
        hidden_states, gate_bias, correction_bias = 0 * hidden_states, 0 * gate_bias + 1, 0 * correction_bias
    if case.values == "large":
        hidden_states *= 20
    if case.values == "negative":  # where a score is all but 0, and still has all its digits
        gate_bias -= 20
        if case.gate == "absent":
            hidden_states -= 20
    spoilt = rng.random(hidden_states.shape) < 0.3 / features
    if case.values == "nan":
        hidden_states[spoilt] = np.nan
    if case.values == "infinite":
        hidden_states[spoilt] = np.inf
    if case.values == "opposites" and case.gate == "absent":  # infinities of both signs among the logits
        kinds = rng.choice(3, hidden_states.shape)
        hidden_states[kinds == 1], hidden_states[kinds == 2] = np.inf, -np.inf
    if case.values == "masked" and case.gate == "absent":  # at most half of the experts
        masked = rng.random(hidden_states.shape) < 0.3
        masked[..., ::2] = False
        hidden_states[masked] = -np.inf
    gate_dtype = np.dtype(np.float32) if case.gate == "float" else dtype
    return RouterInputs(
        hidden_states=hidden_states.astype(dtype),
        gate_weight=None if case.gate == "absent" else gate_weight.astype(gate_dtype),
        gate_bias=gate_bias.astype(gate_dtype) if case.gate_bias else None,
        correction_bias=correction_bias.astype(np.float32) if case.correction_bias else None,
        next_gate_weight=_next_gate(case),
    )
