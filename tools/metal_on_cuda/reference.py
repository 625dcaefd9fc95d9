"""A MoE block in float64, token by token: what the kernels' results are held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metal.simulator.operators import Projection, ProjectionWeights, Router

from .models import Array, Block, Model

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def decode_scales(scales: Array, format: str) -> Array:
    if format == "mxfp4":
        return np.exp2(scales.astype(np.float64) - 127)
    exponent, mantissa = (scales >> 3).astype(np.int64), (scales & 7).astype(np.float64)
    return np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def project(attributes: Projection, projection: ProjectionWeights, expert: int, x: Array) -> Array:
    """Output [N'] of one expert for x [K]."""
    codes = projection.weights[expert]
    values = E2M1[np.stack((codes & 15, codes >> 4), -1).reshape(len(codes), -1)]
    scales = decode_scales(projection.scales[expert], attributes.format)
    blocks = values.reshape(*scales.shape, -1) * scales[..., None]
    products: Array = blocks.reshape(values.shape) @ x.astype(np.float64)
    if projection.bias is not None:
        products = products + projection.bias[expert].astype(np.float64)
    if not attributes.gated:
        return products
    half = len(products) // 2
    interleaved = attributes.gate_layout == "interleaved"
    gate, up = (products[::2], products[1::2]) if interleaved else (products[:half], products[half:])
    if attributes.limit:
        gate, up = np.minimum(gate, attributes.limit), np.clip(up, -attributes.limit, attributes.limit)
    activated: Array = gate / (1 + np.exp(-attributes.alpha * gate)) * (up + attributes.beta)
    return activated


@dataclass(frozen=True)
class Routing:
    """Chosen experts [T, k], their weights [T, k], and the least distance [T] from one to the next best."""

    expert_ids: Array
    expert_weights: Array
    margins: Array


def route(attributes: Router, block: Block, x: Array) -> Routing:
    scores = x.astype(np.float64) @ block.gate.astype(np.float64).T
    if block.gate_bias is not None:
        scores = scores + block.gate_bias
    if attributes.scoring == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))
    if attributes.scoring == "softmax":
        scores = _softmax(scores)
    keys = scores + (0 if block.correction_bias is None else block.correction_bias.astype(np.float64))
    order = np.argsort(-keys, axis=-1, kind="stable")
    sorted_keys = np.take_along_axis(keys, order, -1)
    k = attributes.top_k
    weights = np.take_along_axis(scores, order[:, :k], -1)
    if attributes.scoring == "softmax_after_topk":
        weights = _softmax(weights)
    if attributes.normalize:
        weights = weights / (weights.sum(-1, keepdims=True) + attributes.norm_epsilon)
    # Where two of the chosen are as close as rounding, their order is open too.
    margins = (sorted_keys[:, :k] - sorted_keys[:, 1 : k + 1]).min(-1)
    return Routing(order[:, :k], weights * attributes.scaling_factor, margins)


def run_block(model: Model, block: Block, routing: Routing, x: Array, token: int) -> Array:
    """The block's output [H] for one token."""
    y = np.zeros(model.hidden_size)
    for expert, weight in zip(routing.expert_ids[token], routing.expert_weights[token], strict=True):
        intermediate = project(model.gate_up, block.gate_up, int(expert), x[token])
        y += weight * project(model.down, block.down, int(expert), intermediate)
    return y


def _softmax(values: Array) -> Array:
    powers: Array = np.exp(values - values.max(-1, keepdims=True))
    sums: Array = powers.sum(-1, keepdims=True)
    return np.divide(powers, sums)
