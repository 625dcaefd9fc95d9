"""MoERouter in plain Torch: the specification of the operator."""

from __future__ import annotations

from typing import Any

import torch

from onnx_moe.errors import InvalidInputError
from onnx_moe.operators import ROUTER, RouterAttributes, router_attributes

_FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def router(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor | None = None,
    gate_bias: torch.Tensor | None = None,
    correction_bias: torch.Tensor | None = None,
    next_gate_weight: torch.Tensor | None = None,
    *,
    compute_dtype: torch.dtype = torch.float32,
    **attributes: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """expert_ids int32 [..., k]; expert_weights [..., k] and router_logits [..., E] in `compute_dtype`.

    hidden_states: [..., H], or the logits [..., E] when there is no gate_weight.
    gate_weight: [E, H]; gate_bias: [E], added to the logits.
    correction_bias: [E], added to the scores for the selection only.
    next_gate_weight: [F, H], the next layer's gate_weight; changes nothing here (it says what to read ahead).
    attributes: those of MoERouter; k = top_k + num_shared_experts.
    """
    options = router_attributes(attributes)
    check_router_inputs(hidden_states, gate_weight, gate_bias, correction_bias, next_gate_weight, options)
    logits = hidden_states.to(compute_dtype, copy=True)
    if gate_weight is not None:
        logits = logits @ gate_weight.to(compute_dtype).T
    if gate_bias is not None:
        logits = logits + gate_bias.to(compute_dtype)

    scoring = options.scoring.removesuffix("_after_topk")
    scored_after = scoring != options.scoring
    scores = logits if scored_after else score(logits, scoring)
    keys = scores if correction_bias is None else scores + correction_bias.to(compute_dtype)
    invalid = keys.isnan().any(-1, keepdim=True) | scores.isnan().any(-1, keepdim=True)

    expert_ids = select(mask_groups(keys, options), options.top_k)
    first_ids = torch.arange(options.top_k, device=expert_ids.device)
    expert_ids = torch.where(invalid, first_ids, expert_ids)
    chosen = scores.gather(-1, expert_ids)
    expert_weights = score(chosen, scoring) if scored_after else chosen
    if options.normalize:
        total = expert_weights.sum(-1, keepdim=True) + options.norm_epsilon
        expert_weights = expert_weights / total.clamp(min=options.norm_min)
    expert_weights = (expert_weights * options.scaling_factor).masked_fill(invalid, torch.nan)

    expert_ids, expert_weights = append_shared_experts(expert_ids, expert_weights, logits.shape[-1], options)
    return expert_ids.int(), expert_weights, logits


def score(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    """Scores of logits along the last axis."""
    if scoring == "softmax":
        return logits.softmax(-1)
    if scoring == "sigmoid":
        return logits.sigmoid()
    return torch.sqrt(torch.nn.functional.softplus(logits))


def select(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Indices int64 of the `count` largest keys along the last axis, best first, ties to the lowest index."""
    return keys.argsort(dim=-1, descending=True, stable=True)[..., :count]


def mask_groups(keys: torch.Tensor, options: RouterAttributes) -> torch.Tensor:
    """`keys`, with -inf for the experts outside of the best `top_k_groups` groups of consecutive ids."""
    if options.num_groups == 1:
        return keys
    group_size = keys.shape[-1] // options.num_groups
    groups = keys.reshape(*keys.shape[:-1], options.num_groups, group_size)
    counted = 1 if options.group_scoring == "max" else 2
    group_scores = groups.topk(counted, dim=-1).values.sum(-1)
    # An infinity and its opposite: the group comes last. (Rows that hold a NaN are decided elsewhere.)
    group_scores = group_scores.masked_fill(group_scores.isnan(), -torch.inf)
    kept = torch.zeros_like(group_scores, dtype=torch.bool)
    kept = kept.scatter(-1, select(group_scores, options.top_k_groups), True)
    return groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)


def append_shared_experts(
    expert_ids: torch.Tensor, expert_weights: torch.Tensor, num_experts: int, options: RouterAttributes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the ids E ... E + num_shared_experts - 1 with weight 1 to every row."""
    shape = (*expert_ids.shape[:-1], options.num_shared_experts)
    shared_ids = num_experts + torch.arange(options.num_shared_experts, device=expert_ids.device)
    return (
        torch.cat((expert_ids, shared_ids.expand(shape)), dim=-1),
        torch.cat((expert_weights, expert_weights.new_ones(shape)), dim=-1),
    )


def check_router_inputs(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor | None,
    gate_bias: torch.Tensor | None,
    correction_bias: torch.Tensor | None,
    next_gate_weight: torch.Tensor | None,
    options: RouterAttributes,
) -> int:
    """The number of experts; InvalidInputError unless shapes and dtypes fit each other."""
    if hidden_states.ndim == 0 or hidden_states.dtype not in _FLOAT_TYPES:
        raise InvalidInputError(
            f"{ROUTER}: hidden_states is a {hidden_states.dtype} of shape {list(hidden_states.shape)}: pass "
            "a float, float16 or bfloat16 tensor of at least one dimension."
        )
    num_experts: int = hidden_states.shape[-1]
    if gate_weight is not None:
        if gate_weight.ndim != 2 or gate_weight.shape[1] != hidden_states.shape[-1]:
            raise InvalidInputError(
                f"{ROUTER}: gate_weight has shape {list(gate_weight.shape)}: hidden_states of shape "
                f"{list(hidden_states.shape)} take [num_experts, {hidden_states.shape[-1]}]."
            )
        num_experts = gate_weight.shape[0]
    for name, bias in (("gate_bias", gate_bias), ("correction_bias", correction_bias)):
        if bias is not None and tuple(bias.shape) != (num_experts,):
            raise InvalidInputError(
                f"{ROUTER}: {name} has shape {list(bias.shape)}: a router of {num_experts} experts takes "
                f"[{num_experts}]."
            )
    if next_gate_weight is not None:
        _check_next_gate(hidden_states, gate_weight, next_gate_weight)
    options.check_num_experts(num_experts)
    return num_experts


def _check_next_gate(
    hidden_states: torch.Tensor, gate_weight: torch.Tensor | None, next_gate_weight: torch.Tensor
) -> None:
    if gate_weight is None:
        raise InvalidInputError(
            f"{ROUTER}: next_gate_weight takes hidden states, but without gate_weight the router gets logits: leave it "
            "out."
        )
    if next_gate_weight.ndim != 2 or next_gate_weight.shape[1] != hidden_states.shape[-1]:
        raise InvalidInputError(
            f"{ROUTER}: next_gate_weight has shape {list(next_gate_weight.shape)}: hidden_states of shape "
            f"{list(hidden_states.shape)} take [num_experts, {hidden_states.shape[-1]}]."
        )
