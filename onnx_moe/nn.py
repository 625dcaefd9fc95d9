"""A plain mixture-of-experts layer in Torch, for models that are written without transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from onnx_moe.errors import InvalidAttributeError

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}

_SCORINGS = ("softmax", "sigmoid", "softmax_after_topk")


def _choose(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise InvalidAttributeError(f"{name}={value!r} is unknown: use one of {', '.join(choices)}.")
    return value


class Router(nn.Module):
    """Chooses top_k experts a row: x [T, H] → weights [T, k] in float32, ids [T, k].

    softmax and sigmoid score all experts, add correction_bias for the choice alone, and normalise the chosen scores
    if `normalize`; softmax_after_topk scores the chosen ones only.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        *,
        scoring: str = "softmax",
        normalize: bool = True,
        scaling_factor: float = 1.0,
        correction_bias: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise InvalidAttributeError(f"top_k={top_k} must lie from 1 to num_experts={num_experts}.")
        self.top_k = top_k
        self.scoring = _choose("scoring", scoring, _SCORINGS)
        self.normalize = normalize
        self.routed_scaling_factor = scaling_factor
        self.weight = nn.Parameter(torch.randn(num_experts, hidden_size) / hidden_size**0.5)
        self.correction_bias = nn.Buffer(torch.zeros(num_experts)) if correction_bias else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = functional.linear(x.float(), self.weight.float())
        if self.scoring == "softmax_after_topk":
            best, ids = logits.topk(self.top_k, dim=-1)
            return best.softmax(dim=-1) * self.routed_scaling_factor, ids
        scores = logits.softmax(dim=-1) if self.scoring == "softmax" else logits.sigmoid()
        keys = scores if self.correction_bias is None else scores + self.correction_bias
        ids = keys.topk(self.top_k, dim=-1).indices
        weights = scores.gather(-1, ids)
        if self.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * self.routed_scaling_factor, ids


class Experts(nn.Module):
    """All experts' gated MLPs, stacked: gate_up_proj [E, 2I, H] (gate rows, then up rows), down_proj [E, H, I]."""

    # What transformers' experts modules say of themselves: the exporter reads the same from both.
    has_gate = True
    has_bias = False
    is_transposed = False
    is_concatenated = True

    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int, activation: str = "silu") -> None:
        super().__init__()
        self.activation = _choose("activation", activation, tuple(_ACTIVATIONS))
        self.gate_up_proj = nn.Parameter(
            torch.randn(num_experts, 2 * intermediate_size, hidden_size) / hidden_size**0.5
        )
        self.down_proj = nn.Parameter(torch.randn(num_experts, hidden_size, intermediate_size) / intermediate_size**0.5)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return _ACTIVATIONS[self.activation](gate) * up

    def forward(
        self, hidden_states: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        """x [T, H], ids [T, k], weights [T, k] → [T, H]."""
        output = torch.zeros_like(hidden_states)
        for expert in torch.unique(expert_ids).tolist():
            rows, slots = torch.where(expert_ids == expert)
            hidden = self._apply_gate(hidden_states[rows] @ self.gate_up_proj[expert].T)
            weighted = (hidden @ self.down_proj[expert].T) * expert_weights[rows, slots, None]
            output.index_add_(0, rows, weighted.to(output.dtype))
        return output


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)): a shared expert."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str = "silu") -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.down_proj(_ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))
        return hidden


class SparseMoE(nn.Module):
    """A mixture-of-experts layer: x [..., H] → [..., H], which `onnx_moe.export` knows.

    Every row goes through top_k of num_experts gated MLPs of intermediate_size, weighted by the router, and through
    num_shared_experts MLPs of the same size that all rows share. Router options: see `Router`.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        *,
        activation: str = "silu",
        scoring: str = "softmax",
        normalize: bool = True,
        scaling_factor: float = 1.0,
        correction_bias: bool = False,
        num_shared_experts: int = 0,
    ) -> None:
        super().__init__()
        self.router = Router(
            hidden_size,
            num_experts,
            top_k,
            scoring=scoring,
            normalize=normalize,
            scaling_factor=scaling_factor,
            correction_bias=correction_bias,
        )
        self.experts = Experts(hidden_size, intermediate_size, num_experts, activation)
        self.shared_experts = (
            GatedMLP(hidden_size, num_shared_experts * intermediate_size, activation) if num_shared_experts else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, ids = self.router(rows)
        output: torch.Tensor = self.experts(rows, ids, weights).view_as(x)
        if self.shared_experts is not None:
            output = output + self.shared_experts(x)
        return output
