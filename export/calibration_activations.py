"""What the experts of a layer see when a module reads a calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from onnx_moe.errors import ExportError
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.patching import replace_forward


@dataclass(frozen=True)
class Activations:
    """Tokens that reached a layer's experts: hidden_states [T, H], expert_ids [T, k], expert_weights [T, k]."""

    hidden_states: torch.Tensor
    expert_ids: torch.Tensor
    expert_weights: torch.Tensor

    def routed_to(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens [n] that the router sent to `expert`, and the weight [n] of its output in each."""
        tokens, slots = (self.expert_ids == expert).nonzero(as_tuple=True)
        return tokens, self.expert_weights[tokens, slots]


class _LayerReached(Exception):
    """The layer of interest was called: the rest of the module need not run."""


def record_activations(layer: MoELayer, runs: Iterable[Callable[[], object]]) -> Activations:
    """What reaches the experts of `layer` in `runs`, calls of the module; each ends at the layer."""
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def experts(hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        parts.append((rows, ids.reshape(len(rows), -1).long(), weights.reshape(len(rows), -1).float()))
        raise _LayerReached

    outer = layer.experts.forward
    forward: Callable[..., Any] = experts if outer is None else lambda *a, **k: outer(experts, *a, **k)
    with torch.no_grad(), replace_forward(layer.experts_module, forward):
        for run in runs:
            try:
                run()
            except _LayerReached:
                continue
            raise ExportError(
                f"A calibration input does not reach the experts {layer.path or 'of the module'!r}: use inputs that "
                "run every layer."
            )
    if not parts:
        raise ExportError("The calibration text holds no tokens: give a longer one.")
    return Activations(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
