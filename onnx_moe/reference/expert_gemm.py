"""MoEExpertGemmFP4 in plain Torch: the specification of the operator."""

from __future__ import annotations

from typing import Any

import torch

from onnx_moe.errors import InvalidInputError
from onnx_moe.formats import get_format
from onnx_moe.layout import CODE_BYTES, SCALES, check_interleaved, deinterleave
from onnx_moe.operators import EXPERT_GEMM, ExpertGemmAttributes, expert_gemm_attributes
from onnx_moe.reference.decode import check_weights, decode_weights


def expert_gemm(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    expert_weights: torch.Tensor | None = None,
    *,
    compute_dtype: torch.dtype = torch.float32,
    **attributes: Any,
) -> torch.Tensor:
    """y [..., k, N'], or with expert_weights [..., N'], in x's dtype (float64 if `compute_dtype` is float64).

    x: [..., K], one row per token, or [..., k, K], one per slot; expert_ids: integers [..., k].
    weights, scales: see `decode_weights`, with the leading dimension E.
    global_scale: [E] or [E, 2] (gate, up); bias: [E, N]; expert_weights: [..., k].
    attributes: those of MoEExpertGemmFP4; N' = N / 2 when gated, else N.
    """
    options = expert_gemm_attributes(attributes)
    check_expert_gemm_inputs(x, expert_ids, weights, scales, global_scale, bias, options)
    check_leading_dimensions(x, expert_ids, expert_weights)
    check_expert_ids(expert_ids, weights.shape[0])
    x_per_slot = x if x.ndim > expert_ids.ndim else x.unsqueeze(-2).expand(*expert_ids.shape, x.shape[-1])
    slots = x_per_slot.reshape(-1, x.shape[-1]).to(compute_dtype)
    slot_experts = expert_ids.reshape(-1)

    y = slots.new_empty(slots.shape[0], output_rows(weights, options))
    for expert in torch.unique(slot_experts).tolist():
        chosen = slot_experts == expert
        matrix = decode_matrix(weights[expert], scales[expert], options, compute_dtype)
        products = slots[chosen] @ matrix.T
        if global_scale is not None:
            products = products * row_scales(global_scale[expert].to(compute_dtype), options, weights.shape[1])
        if bias is not None:
            products = products + bias[expert].to(compute_dtype)
        y[chosen] = activate(products, options)

    y = y.reshape(*expert_ids.shape, y.shape[-1])
    if expert_weights is not None:
        y = combine(y, expert_weights.to(compute_dtype))
    return y if compute_dtype == torch.float64 else y.to(x.dtype)


def decode_matrix(
    weights: torch.Tensor, scales: torch.Tensor, options: ExpertGemmAttributes, dtype: torch.dtype
) -> torch.Tensor:
    """One expert's weights [N, K], from either layout."""
    if options.weight_layout == "interleaved":
        weights, scales = deinterleave(weights, CODE_BYTES), deinterleave(scales, SCALES)
    return decode_weights(weights, scales, options.format, options.block_size, dtype)


def row_scales(global_scale: torch.Tensor, options: ExpertGemmAttributes, rows: int) -> torch.Tensor:
    """One expert's global scale, [] or [2], as a factor for each of the N products."""
    if global_scale.ndim == 0:
        return global_scale.expand(rows)
    if options.gate_layout == "interleaved":
        return global_scale.repeat(rows // 2)
    return global_scale.repeat_interleave(rows // 2)


def activate(products: torch.Tensor, options: ExpertGemmAttributes) -> torch.Tensor:
    """activation(products) [..., N], or when gated activation(gate) * (up + beta) [..., N / 2]."""
    if not options.gated:
        return activation(products, options)
    if options.gate_layout == "interleaved":
        gate, up = products[..., 0::2], products[..., 1::2]
    else:
        gate, up = products.chunk(2, dim=-1)
    if options.limit > 0:
        gate = gate.clamp(max=options.limit)
        up = up.clamp(-options.limit, options.limit)
    return activation(gate, options) * (up + options.beta)


def activation(gate: torch.Tensor, options: ExpertGemmAttributes) -> torch.Tensor:
    if options.activation == "silu":
        return gate * (options.alpha * gate).sigmoid()
    if options.activation == "gelu":
        return torch.nn.functional.gelu(gate)
    if options.activation == "gelu_tanh":
        return torch.nn.functional.gelu(gate, approximate="tanh")
    if options.activation == "relu":
        return gate.relu()
    if options.activation == "relu2":
        return gate.relu().square()
    return gate


def combine(y: torch.Tensor, expert_weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum over the slots of y [..., k, N'], in slot order."""
    total = y.new_zeros(*y.shape[:-2], y.shape[-1])
    for slot in range(y.shape[-2]):
        total = total + expert_weights[..., slot, None] * y[..., slot, :]
    return total


def output_rows(weights: torch.Tensor, options: ExpertGemmAttributes) -> int:
    """N' of weights [E, N, K/2]."""
    rows: int = weights.shape[1]
    return rows // 2 if options.gated else rows


def check_expert_ids(expert_ids: torch.Tensor, num_experts: int) -> None:
    """InvalidInputError if an id is outside of [0, num_experts)."""
    flat = expert_ids.reshape(-1)
    outside = ((flat < 0) | (flat >= num_experts)).nonzero()
    if len(outside):
        position = int(outside[0])
        row, slot = divmod(position, expert_ids.shape[-1])
        raise InvalidInputError(
            f"{EXPERT_GEMM}: expert_ids holds {int(flat[position])} in row {row}, slot {slot}: the weights "
            f"have {num_experts} experts, so that ids are 0 to {num_experts - 1}."
        )


def check_expert_gemm_inputs(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    options: ExpertGemmAttributes,
) -> None:
    """InvalidInputError unless ranks, dtypes and the sizes that belong to the weights fit each other."""
    if weights.ndim != 3:
        raise InvalidInputError(f"{EXPERT_GEMM}: weights have shape {list(weights.shape)}: pass [num_experts, N, K/2].")
    check_weights(weights, scales, get_format(options.format), options.block_size)
    num_experts, rows, columns = weights.shape[0], weights.shape[1], 2 * weights.shape[2]
    if options.gated and rows % 2:
        raise InvalidInputError(f"{EXPERT_GEMM}: N={rows} is odd, but gated=1 takes pairs of gate and up rows.")
    if options.weight_layout == "interleaved":
        check_interleaved(rows, bool(options.gated))
    if expert_ids.ndim == 0 or expert_ids.dtype not in (torch.int32, torch.int64):
        raise InvalidInputError(
            f"{EXPERT_GEMM}: expert_ids is a {expert_ids.dtype} of shape {list(expert_ids.shape)}: pass int32 [..., k]."
        )
    if expert_ids.shape[-1] == 0:
        raise InvalidInputError(
            f"{EXPERT_GEMM}: expert_ids has shape {list(expert_ids.shape)}: pass [..., k] with k of at least 1."
        )
    if x.ndim not in (expert_ids.ndim, expert_ids.ndim + 1) or x.shape[-1] != columns:
        raise InvalidInputError(
            f"{EXPERT_GEMM}: x has shape {list(x.shape)}: expert_ids of shape {list(expert_ids.shape)} and "
            f"weights of K={columns} take [..., {columns}] or [..., k, {columns}]."
        )
    if global_scale is not None and tuple(global_scale.shape) not in ((num_experts,), (num_experts, 2)):
        raise InvalidInputError(
            f"{EXPERT_GEMM}: global_scale has shape {list(global_scale.shape)}: pass [{num_experts}] or "
            f"[{num_experts}, 2]."
        )
    if global_scale is not None and global_scale.ndim == 2 and not options.gated:
        raise InvalidInputError(
            f"{EXPERT_GEMM}: global_scale has shape {list(global_scale.shape)}, one for gate and one for up, "
            f"but gated=0: pass [{num_experts}]."
        )
    if bias is not None and tuple(bias.shape) != (num_experts, rows):
        raise InvalidInputError(f"{EXPERT_GEMM}: bias has shape {list(bias.shape)}: pass [{num_experts}, {rows}].")


def check_leading_dimensions(x: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor | None) -> None:
    """InvalidInputError unless x, expert_ids and expert_weights have the same rows (and slots)."""
    expected = expert_ids.shape if x.ndim > expert_ids.ndim else expert_ids.shape[:-1]
    if x.shape[:-1] != expected:
        raise InvalidInputError(
            f"{EXPERT_GEMM}: x has shape {list(x.shape)}, which does not fit expert_ids of shape "
            f"{list(expert_ids.shape)}: all dimensions but the last must agree."
        )
    if expert_weights is not None and expert_weights.shape != expert_ids.shape:
        raise InvalidInputError(
            f"{EXPERT_GEMM}: expert_weights have shape {list(expert_weights.shape)}: they take the shape of "
            f"expert_ids, {list(expert_ids.shape)}."
        )
