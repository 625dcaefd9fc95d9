"""MoERouter in standard operators."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_moe.operators import RouterAttributes
from onnx_moe.portable.builder import BodyBuilder
from onnx_moe.portable.elementary import sigmoid, softplus, to_float


def router_body(
    op: BodyBuilder,
    hidden_states: ir.Value,
    gate_weight: ir.Value | None,
    gate_bias: ir.Value | None,
    correction_bias: ir.Value | None,
    *,
    options: RouterAttributes,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The outputs expert_ids, expert_weights and router_logits; an input that the node omits is None."""
    logits = to_float(op, hidden_states)
    if gate_weight is not None:
        logits = op.MatMul(logits, op.Transpose(to_float(op, gate_weight), perm=[1, 0]))
    if gate_bias is not None:
        logits = op.Add(logits, to_float(op, gate_bias))

    # One row more than the logits': without rows, ONNX Runtime 1.24 crashes in TopK and errs in ReduceMax.
    num_experts = op.Shape(logits, start=-1)
    spare_row = op.Expand(0.0, op.Concat([1], num_experts, axis=0))
    rows = op.Concat(op.Reshape(logits, op.Concat([-1], num_experts, axis=0)), spare_row, axis=0)

    scoring = options.scoring.removesuffix("_after_topk")
    scored_after = scoring != options.scoring
    scores = rows if scored_after else _score(op, rows, scoring)
    keys = scores if correction_bias is None else op.Add(scores, correction_bias)
    invalid = _any_in_row(op, op.Or(op.IsNaN(keys), op.IsNaN(scores)))

    # The rows that hold a NaN tie everywhere, which chooses the ids 0, 1, ...
    keys = _mask_groups(op, op.Where(invalid, 0.0, keys), options)
    _, expert_ids = op.outputs("TopK", 2, keys, [options.top_k], axis=-1)
    chosen = op.GatherElements(scores, expert_ids, axis=-1)
    expert_weights = _score(op, chosen, scoring) if scored_after else chosen
    if options.normalize:
        total = op.Add(op.ReduceSum(expert_weights, [-1], keepdims=1), options.norm_epsilon)
        expert_weights = op.Div(expert_weights, op.Max(total, options.norm_min))
    expert_weights = op.Where(invalid, math.nan, op.Mul(expert_weights, options.scaling_factor))

    expert_ids = op.Cast(expert_ids, to=ir.DataType.INT32)
    if options.num_shared_experts:
        expert_ids, expert_weights = _append_shared_experts(op, expert_ids, expert_weights, num_experts, options)
    slots = options.top_k + options.num_shared_experts
    shape = op.Concat(op.Shape(logits, end=-1), [slots], axis=0)
    return _drop_spare_row(op, expert_ids, shape), _drop_spare_row(op, expert_weights, shape), logits


def _score(op: BodyBuilder, logits: ir.Value, scoring: str) -> ir.Value:
    if scoring == "softmax":
        return op.Softmax(logits, axis=-1)
    if scoring == "sigmoid":
        return sigmoid(op, logits)
    return op.Sqrt(softplus(op, logits))


def _drop_spare_row(op: BodyBuilder, rows: ir.Value, shape: ir.Value) -> ir.Value:
    return op.Reshape(op.Slice(rows, [0], [-1], [0]), shape, allowzero=1)


def _any_in_row(op: BodyBuilder, condition: ir.Value) -> ir.Value:
    as_integers = op.Cast(condition, to=ir.DataType.INT32)
    return op.Cast(op.ReduceMax(as_integers, [-1], keepdims=1), to=ir.DataType.BOOL)


def _mask_groups(op: BodyBuilder, keys: ir.Value, options: RouterAttributes) -> ir.Value:
    """`keys`, with -inf for the experts outside of the best `top_k_groups` groups of consecutive ids."""
    if options.num_groups == 1:
        return keys
    group_size = op.Div(op.Shape(keys, start=-1), [options.num_groups])
    groups = op.Reshape(keys, op.Concat([-1, options.num_groups], group_size, axis=0))
    if options.group_scoring == "max":
        group_scores = op.ReduceMax(groups, [-1], keepdims=0)
    else:
        best_two, _ = op.outputs("TopK", 2, groups, [2], axis=-1)
        group_scores = op.ReduceSum(best_two, [-1], keepdims=0)
        group_scores = op.Where(op.IsNaN(group_scores), -math.inf, group_scores)  # an infinity and its opposite
    _, kept = op.outputs("TopK", 2, group_scores, [options.top_k_groups], axis=-1)
    every_group = op.Unsqueeze(list(range(options.num_groups)), [-1])
    is_kept = _any_in_row(op, op.Equal(op.Unsqueeze(kept, [-2]), every_group))
    return op.Reshape(op.Where(is_kept, groups, -math.inf), op.Shape(keys))


def _append_shared_experts(
    op: BodyBuilder,
    expert_ids: ir.Value,
    expert_weights: ir.Value,
    num_experts: ir.Value,
    options: RouterAttributes,
) -> tuple[ir.Value, ir.Value]:
    """Adds the ids E ... E + num_shared_experts - 1 with weight 1 to every row."""
    shared_ids = op.Add(num_experts, list(range(options.num_shared_experts)))
    shape = op.Concat(op.Shape(expert_ids, end=-1), [options.num_shared_experts], axis=0)
    shared_ids = op.Expand(op.Cast(shared_ids, to=ir.DataType.INT32), shape)
    return (
        op.Concat(expert_ids, shared_ids, axis=-1),
        op.Concat(expert_weights, op.Expand([1.0], shape), axis=-1),
    )
