"""What the exporter knows of a layer of experts: its projections, its activation, how its module is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass
class Projection:
    """One projection of all experts: `parameter` [E, N, K], or [E, K, N] when `transposed`; bias [E, N] or None."""

    parameter: torch.Tensor
    transposed: bool = False
    bias: torch.Tensor | None = None

    @property
    def matrix(self) -> torch.Tensor:
        """A view [E, N, K] of the parameter."""
        return self.parameter.detach().transpose(1, 2) if self.transposed else self.parameter.detach()

    @property
    def num_experts(self) -> int:
        return int(self.parameter.shape[0])


class RunExperts(Protocol):
    """The FP4 experts of a layer: x [T, H], expert_ids [T, k], expert_weights [T, k] → [T, H]."""

    def __call__(
        self, hidden_states: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor: ...


@dataclass
class ExpertLayer:
    """A layer of experts: y = Σ_s w[s] · down(activation(up(x))).

    up: gate and up rows together when gated. activation: attributes of MoEExpertGemmFP4 (activation, gated,
    gate_layout, alpha, beta, limit) for the first product; `gate` replaces them by a Torch function of its products
    [T, k, N], exported as ordinary operators, when no attributes describe it.
    forward: how the module's forward uses the experts, given them and its own arguments; by default they are
    (hidden_states, expert_ids, expert_weights), as in transformers' experts modules.
    """

    up: Projection
    down: Projection
    activation: dict[str, Any] = field(default_factory=dict)
    gate: Callable[[torch.Tensor], torch.Tensor] | None = None
    forward: Callable[..., torch.Tensor] | None = None

    @property
    def num_experts(self) -> int:
        return self.up.num_experts


@dataclass
class SharedExpert:
    """Shared experts of the routed experts' shape, to be appended to them: gate and up [I, H], down [H, I] each."""

    gate: torch.nn.Parameter
    up: torch.nn.Parameter
    down: torch.nn.Parameter
    count: int
