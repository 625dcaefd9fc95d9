"""What is right, in numpy's float64: an evaluation that shares no code with the package.

FP4 codes and scales are decoded by ml_dtypes. Beside each value stands the error that float32 arithmetic may
have made in it: (n + c) * 2^-24 times the magnitude of what was summed, as the analysis of a sum of n terms
gives, and half a step of the activations' rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from .cases import GemmCase, RouterCase
from .data import Array, GemmInputs, RouterInputs

FLOAT32_ROUNDOFF = 2.0**-24

#: Steps from 0 to the largest activation of a block of 32, for each accuracy_level: what activations may be rounded to.
ACTIVATION_STEPS = {0: 2**31 // 768, 1: 2**31 // 768, 2: 126 * 2**8, 3: 126 * 2**8, 4: 127}

#: Largest slope of each activation, or None where it grows with the argument.
_SLOPES = {"none": 1.0, "silu": 1.1, "gelu": 1.13, "gelu_tanh": 1.13, "relu": 1.0}


@dataclass(frozen=True)
class Expected:
    """Values, and a bound of the error of a float32 evaluation in any order of summation."""

    value: Array
    error: Array


def decode_weights(weights: Array, scales: Array, format: str, block_size: int) -> Array:
    """float64 [..., N, K]."""
    nibbles = np.stack((weights & 0x0F, weights >> 4), axis=-1).reshape(*weights.shape[:-1], -1)
    codes = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scale_type = {"mxfp4": ml_dtypes.float8_e8m0fnu, "nvfp4": ml_dtypes.float8_e4m3fn, "fp4": np.float16}[format]
    return codes * np.repeat(scales.view(scale_type).astype(np.float64), block_size, axis=-1)


def rows_of_groups(array: Array, together: int) -> Array:
    """The rows [N, C] of an array that holds them in groups of 16, `together` elements of each row in turn."""
    rows = np.empty_like(array)
    for first in range(0, len(array), 16):
        pieces = array[first : first + 16].reshape(-1, together)
        for row in range(16):
            rows[first + row] = pieces[row::16].reshape(-1)
    return rows


def expected_gemm(case: GemmCase, inputs: GemmInputs) -> Expected:
    """The output [..., k, N'], or combined [..., N']."""
    x = inputs.x.astype(np.float64)
    if not case.x_per_slot:
        x = np.repeat(x[..., None, :], case.slots, axis=-2)
    x = x.reshape(-1, case.columns)
    expert_of_slot = inputs.expert_ids.reshape(-1)
    products = np.empty((len(x), case.rows))
    magnitude = np.empty((len(x), case.rows))
    rounding = np.empty((len(x), case.rows))
    half_step = _half_step(case, x)
    for expert in np.unique(expert_of_slot):
        slots = expert_of_slot == expert
        codes, scales = inputs.weights[expert], inputs.scales[expert]
        if case.weight_layout == "interleaved":
            codes, scales = rows_of_groups(codes, 4), rows_of_groups(scales, 1)
        weight = decode_weights(codes, scales, case.format, case.resolved_block_size)
        factor = _row_factors(case, inputs.global_scale, expert)
        bias = 0 if inputs.bias is None else inputs.bias[expert].astype(np.float64)
        products[slots] = x[slots] @ weight.T * factor + bias
        magnitude[slots] = np.abs(x[slots]) @ np.abs(weight.T) * factor + np.abs(bias)
        rounding[slots] = half_step[slots] @ np.abs(weight.T) * np.abs(factor)
    error = (case.columns + 4) * FLOAT32_ROUNDOFF * magnitude + rounding
    y = _activated(case, Expected(products, error))
    shape = (*inputs.expert_ids.shape, case.output_rows)
    y = Expected(y.value.reshape(shape), y.error.reshape(shape))
    return y if inputs.expert_weights is None else _combined(y, inputs.expert_weights.astype(np.float64))


def _half_step(case: GemmCase, x: Array) -> Array:
    """Half of the step to which each activation [rows, K] may be rounded."""
    padded = np.pad(np.abs(x), ((0, 0), (0, -case.columns % 32)))
    blocks = padded.reshape(len(x), padded.shape[1] // 32, 32)
    largest = np.repeat(blocks.max(-1), 32, axis=-1)[:, : case.columns]
    return 0.5 * largest / ACTIVATION_STEPS[case.accuracy_level]


def _row_factors(case: GemmCase, global_scale: Array | None, expert: int) -> Array:
    """The global scale of each of the expert's N rows."""
    if global_scale is None:
        return np.ones(case.rows)
    factors = np.broadcast_to(global_scale[expert].astype(np.float64), (2,) if case.gated else (1,))
    if not case.gated:
        return np.repeat(factors, case.rows)
    return np.tile(factors, case.rows // 2) if case.interleaved else np.repeat(factors, case.rows // 2)


def _activated(case: GemmCase, products: Expected) -> Expected:
    if not case.gated:
        return _activation(case, products)
    half = case.rows // 2
    gate_rows = slice(0, None, 2) if case.interleaved else slice(0, half)
    up_rows = slice(1, None, 2) if case.interleaved else slice(half, None)
    gate, up = products.value[:, gate_rows], products.value[:, up_rows]
    if case.limit > 0:
        gate, up = np.minimum(gate, case.limit), np.clip(up, -case.limit, case.limit)
    activated = _activation(case, Expected(gate, products.error[:, gate_rows]))
    up = up + case.beta
    value = activated.value * up
    error = activated.error * np.abs(up) + np.abs(activated.value) * products.error[:, up_rows]
    return Expected(value, error + 4 * FLOAT32_ROUNDOFF * np.abs(value))


def _activation(case: GemmCase, gate: Expected) -> Expected:
    g = gate.value
    with np.errstate(over="ignore"):
        value = {
            "none": lambda: g,
            "silu": lambda: g / (1 + np.exp(-case.alpha * g)),
            "gelu": lambda: 0.5 * g * (1 + _erf(g / math.sqrt(2))),
            "gelu_tanh": lambda: 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))),
            "relu": lambda: np.maximum(g, 0),
            "relu2": lambda: np.maximum(g, 0) ** 2,
        }[case.activation]()
    slope = _SLOPES[case.activation] if case.activation in _SLOPES else 2 * np.abs(g) + gate.error
    return Expected(value, slope * gate.error + 8 * FLOAT32_ROUNDOFF * np.abs(g) * np.maximum(slope, 1))


def _erf(values: Array) -> Array:
    return np.array([math.erf(value) for value in values.flat]).reshape(values.shape)


def _combined(y: Expected, expert_weights: Array) -> Expected:
    terms = expert_weights[..., None] * y.value
    magnitude = np.abs(expert_weights)[..., None] * y.error + 2 * FLOAT32_ROUNDOFF * np.abs(terms)
    additions = terms.shape[-2] * FLOAT32_ROUNDOFF * np.abs(terms).sum(-2)
    return Expected(terms.sum(-2), magnitude.sum(-2) + additions)


@np.errstate(invalid="ignore")  # an infinity times 0
def expected_logits(case: RouterCase, inputs: RouterInputs) -> Expected:
    """The router's logits [..., E]."""
    hidden_states = inputs.hidden_states.astype(np.float64)
    if inputs.gate_weight is None:
        logits, magnitude, terms = hidden_states, np.abs(hidden_states), 0
    else:
        gate_weight = inputs.gate_weight.astype(np.float64)
        logits = hidden_states @ gate_weight.T
        magnitude, terms = np.abs(hidden_states) @ np.abs(gate_weight.T), case.hidden_size
    if inputs.gate_bias is not None:
        bias = inputs.gate_bias.astype(np.float64)
        logits, magnitude, terms = logits + bias, magnitude + np.abs(bias), terms + 1
    # Infinities are exact.
    return Expected(logits, terms * FLOAT32_ROUNDOFF * np.where(np.isfinite(magnitude), magnitude, 0))


def scores(logits: Array, scoring: str) -> Array:
    """float64 scores of float64 logits [..., n]; `scoring` without "_after_topk"."""
    with np.errstate(invalid="ignore", over="ignore"):
        if scoring == "softmax":
            exponentials = np.exp(logits - logits.max(-1, keepdims=True))
            return exponentials / exponentials.sum(-1, keepdims=True)
        if scoring == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        return np.sqrt(np.logaddexp(0, logits))


def selection_keys(case: RouterCase, inputs: RouterInputs, logits: Array) -> Array:
    """What the experts are chosen by: [..., E]."""
    keys = logits if case.scoring.endswith("_after_topk") else scores(logits, case.scoring)
    return keys if inputs.correction_bias is None else keys + inputs.correction_bias.astype(np.float64)


def expected_expert_weights(case: RouterCase, logits: Array, expert_ids: Array) -> Array:
    """float64 weights of the chosen experts [..., top_k] of rows without NaN."""
    scoring = case.scoring.removesuffix("_after_topk")
    if scoring == case.scoring:
        weights = np.take_along_axis(scores(logits, scoring), expert_ids, -1)
    else:
        weights = scores(np.take_along_axis(logits, expert_ids, -1), scoring)
    if case.normalize:
        weights = weights / np.maximum(weights.sum(-1, keepdims=True) + case.norm_epsilon, case.norm_min)
    return weights * case.scaling_factor
