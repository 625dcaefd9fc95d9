"""What the exporter knows of a layer of experts: its projections, its activation, how its module is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch


@dataclass
class Projection:
    """One projection of all experts: `parameter` [E, N, K], or [E, K, N] when `transposed`; bias [E, N] or None.

    parts: further parameters of the same form, whose rows follow along N. experts: E, where the parameters are
    flattened to [E · N, K], or hold more than the experts' matrices, which come first.
    """

    parameter: torch.Tensor
    transposed: bool = False
    bias: torch.Tensor | None = None
    parts: tuple[torch.Tensor, ...] = ()
    experts: int | None = None

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        """All tensors that hold the weights."""
        return (self.parameter, *self.parts)

    @property
    def matrix(self) -> torch.Tensor:
        """The weights [E, N, K]: a view of the parameter where it is the only one."""
        return self._join([parameter.detach() for parameter in self.parameters], self.num_experts)

    @property
    def is_flat(self) -> bool:
        """Whether the parameters are [E · N, K]."""
        return self.parameter.ndim == 2

    def rows_of_expert(self, parameter: torch.Tensor, index: int) -> range:
        """Where along the first dimension of `parameter` expert `index` lies."""
        height = int(parameter.shape[0]) // self.num_experts if self.is_flat else 1
        return range(index * height, (index + 1) * height)

    def matrix_of_expert(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weights [1, N, K] of one expert, whose rows of each parameter are `rows`."""
        return self._join(rows, 1)

    @property
    def num_experts(self) -> int:
        return int(self.parameter.shape[0]) if self.experts is None else self.experts

    def values(self, matrix: torch.Tensor) -> dict[torch.Tensor, torch.Tensor]:
        """What each parameter must hold for the weights to be `matrix` [E, N, K]."""
        sizes = [self._as_matrix(parameter.detach(), self.num_experts).shape[1] for parameter in self.parameters]
        values = {}
        for parameter, part in zip(self.parameters, matrix.split(sizes, dim=1), strict=True):
            part = part.transpose(1, 2) if self.transposed else part
            rest = parameter.detach()[self.num_experts :] if not self.is_flat else parameter.detach()[:0]
            values[parameter] = torch.cat([part.reshape(-1, *parameter.shape[1:]), rest])
        return values

    def _join(self, tensors: Sequence[torch.Tensor], experts: int) -> torch.Tensor:
        matrices = [self._as_matrix(tensor, experts) for tensor in tensors]
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim=1)

    def _as_matrix(self, tensor: torch.Tensor, experts: int) -> torch.Tensor:
        if self.experts is not None:
            tensor = tensor.unflatten(0, (experts, -1)) if tensor.ndim == 2 else tensor[:experts]
        return tensor.transpose(1, 2) if self.transposed else tensor


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
    (hidden_states, expert_ids, expert_weights), as in transformers' experts modules. router: for a module that routes
    by itself, how, in a word or two.
    """

    up: Projection
    down: Projection
    activation: dict[str, Any] = field(default_factory=dict)
    gate: Callable[[torch.Tensor], torch.Tensor] | None = None
    forward: Callable[..., Any] | None = None
    router: str = ""

    @property
    def num_experts(self) -> int:
        return self.up.num_experts

    def forward_with(self, run: Callable[..., torch.Tensor]) -> Callable[..., Any]:
        """The module's forward, its experts computed by `run`, a RunExperts."""
        return run if self.forward is None else partial(self.forward, run)


def zero_experts(hidden_states: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
    """A RunExperts of experts that give zeros."""
    tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
    has_slots = bool(tensors) and hidden_states.ndim > tensors[0].ndim  # a row for each slot
    return torch.zeros_like(hidden_states[..., 0, :] if has_slots else hidden_states)


@dataclass
class SharedExpert:
    """Shared experts of the routed experts' shape, to be appended to them: gate and up [I, H], down [H, I] each."""

    gate: torch.nn.Parameter
    up: torch.nn.Parameter
    down: torch.nn.Parameter
    count: int
