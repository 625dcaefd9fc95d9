"""MoEExpertGemmFP4 in standard operators."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnx_moe.formats import E2M1_VALUES, get_format
from onnx_moe.layout import CODE_BYTES, GROUP_ROWS, SCALES
from onnx_moe.operators import ExpertGemmAttributes
from onnx_moe.portable.builder import BodyBuilder
from onnx_moe.portable.elementary import sigmoid, to_float

#: The two weights of a byte of codes: [256, 2], the low nibble first.
_BYTE_VALUES = np.array([[E2M1_VALUES[byte & 15], E2M1_VALUES[byte >> 4]] for byte in range(256)], np.float32)


def expert_gemm_body(
    op: BodyBuilder,
    x: ir.Value,
    expert_ids: ir.Value,
    weights: ir.Value,
    scales: ir.Value,
    global_scale: ir.Value | None,
    bias: ir.Value | None,
    expert_weights: ir.Value | None,
    *,
    options: ExpertGemmAttributes,
) -> ir.Value:
    """The output y; an input that the node omits is None.

    A loop over the experts that occur gathers one expert's bytes, decodes them and multiplies the expert's
    slots: a decode of all experts at once, or of a constant, would be a float copy of the weights in memory.
    """
    columns = op.Mul(op.Shape(weights, start=-1), [2])
    x_rows = op.Reshape(to_float(op, x), op.Concat([-1], columns, axis=0))
    slot_experts = op.Reshape(op.Cast(expert_ids, to=ir.DataType.INT64), [-1])
    # x has a row for each slot, or one for each token and its consecutive slots. Max: there may be no rows.
    slots_per_row = op.Div(op.Size(slot_experts), op.Max(op.Shape(x_rows, end=1), [1]))
    num_rows = op.Shape(weights, start=1, end=2)
    output_rows = op.Div(num_rows, [2]) if options.gated else num_rows

    experts = op.Unique(slot_experts, sorted=1)
    loop = BodyBuilder(parent=op)
    iteration = loop.input("iteration", ir.DataType.INT64, [])
    condition = loop.input("condition", ir.DataType.BOOL, [])
    y_before = loop.input("y", ir.DataType.FLOAT)
    expert = loop.Gather(experts, iteration)
    slots = loop.Squeeze(loop.NonZero(loop.Equal(slot_experts, expert)), [0])
    index = _checked_index(loop, expert, weights)
    weight = _decode(loop, loop.Gather(weights, index), loop.Gather(scales, index), options)
    products = loop.Gemm(loop.Gather(x_rows, loop.Div(slots, slots_per_row)), weight, transB=1)
    if global_scale is not None:
        products = loop.Mul(products, _row_scales(loop, loop.Gather(global_scale, index), num_rows, options))
    if bias is not None:
        products = loop.Add(products, to_float(loop, loop.Gather(bias, index)))
    y_after = loop.ScatterND(y_before, loop.Unsqueeze(slots, [-1]), _activate(loop, products, options))
    body = loop.graph([iteration, condition, y_before], [loop.Identity(condition), y_after])

    zeros = op.Expand(0.0, op.Concat(op.Shape(slot_experts), output_rows, axis=0))
    y = op.Loop(op.Size(experts), True, zeros, body=body)
    y = op.Reshape(y, op.Concat(op.Shape(expert_ids), output_rows, axis=0), allowzero=1)
    if expert_weights is not None:
        y = op.Squeeze(op.MatMul(op.Unsqueeze(expert_weights, [-2]), y), [-2])
    return op.CastLike(y, x)


def _checked_index(op: BodyBuilder, expert: ir.Value, weights: ir.Value) -> ir.Value:
    """`expert`, or E if it is negative: Gather takes negative indices, but stops the run at an index of E."""
    num_experts = op.Squeeze(op.Shape(weights, end=1), [0])
    return op.Where(op.Less(expert, 0), num_experts, expert)


def _decode(op: BodyBuilder, codes: ir.Value, scales: ir.Value, options: ExpertGemmAttributes) -> ir.Value:
    """One expert's weights [N, K] from bytes [N, K/2] and scales [N, K/block]."""
    if options.weight_layout == "interleaved":
        codes, scales = _deinterleave(op, codes, CODE_BYTES), _deinterleave(op, scales, SCALES)
    values = op.Gather(_BYTE_VALUES, op.Cast(codes, to=ir.DataType.INT32))
    blocks = op.Reshape(values, [0, -1, options.block_size])
    scale_values = get_format(options.format).scale_values
    if scale_values is None:
        block_scales = to_float(op, scales)
    else:
        table = np.array(scale_values, np.float32)
        block_scales = op.Gather(table, op.Cast(scales, to=ir.DataType.INT32))
    return op.Reshape(op.Mul(blocks, op.Unsqueeze(block_scales, [-1])), [0, -1])


def _deinterleave(op: BodyBuilder, array: ir.Value, together: int) -> ir.Value:
    """`layout.deinterleave` of one expert's codes or scales [N, C]."""
    size = op.Shape(array, start=-1)
    groups = op.Reshape(array, op.Concat([-1], op.Div(size, [together]), [GROUP_ROWS, together], axis=0))
    return op.Reshape(op.Transpose(groups, perm=[0, 2, 1, 3]), op.Concat([-1], size, axis=0))


def _row_scales(op: BodyBuilder, factors: ir.Value, num_rows: ir.Value, options: ExpertGemmAttributes) -> ir.Value:
    """One expert's global scale, [] or [2] (gate, up), as a factor for each of the N products."""
    factors = op.Reshape(factors, [-1])
    rows = op.Range(0, op.Squeeze(num_rows, [0]), 1)
    count = op.Shape(factors)
    if options.gate_layout == "interleaved":
        return op.Gather(factors, op.Mod(rows, count))
    return op.Gather(factors, op.Div(rows, op.Div(num_rows, count)))


def _activate(op: BodyBuilder, products: ir.Value, options: ExpertGemmAttributes) -> ir.Value:
    if not options.gated:
        return _activation(op, products, options)
    if options.gate_layout == "interleaved":
        gate = op.Slice(products, [0], [2**31 - 1], [-1], [2])
        up = op.Slice(products, [1], [2**31 - 1], [-1], [2])
    else:
        gate, up = op.outputs("Split", 2, products, axis=-1, num_outputs=2)
    if options.limit > 0:
        gate = op.Min(gate, options.limit)
        up = op.Max(op.Min(up, options.limit), -options.limit)
    return op.Mul(_activation(op, gate, options), op.Add(up, options.beta))


def _activation(op: BodyBuilder, gate: ir.Value, options: ExpertGemmAttributes) -> ir.Value:
    if options.activation == "silu":
        return op.Mul(gate, sigmoid(op, op.Mul(gate, options.alpha)))
    if options.activation == "gelu":
        cumulative = op.Mul(op.Add(op.Erf(op.Mul(gate, math.sqrt(0.5))), 1.0), 0.5)
        return op.Mul(gate, cumulative)
    if options.activation == "gelu_tanh":
        cubic = op.Mul(op.Mul(op.Mul(gate, gate), gate), 0.044715)
        inner = op.Mul(op.Add(gate, cubic), math.sqrt(2 / math.pi))
        return op.Mul(gate, op.Mul(op.Add(op.Tanh(inner), 1.0), 0.5))
    if options.activation == "relu":
        return op.Relu(gate)
    if options.activation == "relu2":
        positive = op.Relu(gate)
        return op.Mul(positive, positive)
    return gate
