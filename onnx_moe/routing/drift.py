"""How far the routing of one run is from that of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import measures
from onnx_moe.routing.profile import RoutingProfile

Array = NDArray[Any]


@dataclass(frozen=True)
class RoutingDrift:
    """Differences of two runs, of all phases together, by layer [L]; NaN where a run has no tokens.

    divergence: Jensen-Shannon, in bits, 0 to 1. noise: what independent samples of these sizes of one distribution
    would give; tokens that follow each other are not independent, so a run differs from itself by more. common_top:
    share of the most used experts, as many as carry 80 % of the first run, that are the most used of the second too.
    carried_over: share of the second run's selections on them; `own`: on as many of its own.
    """

    divergence: Array
    noise: Array
    common_top: Array
    carried_over: Array
    own: Array

    @property
    def drifted(self) -> Array:
        """Layers [L] whose divergence is above three times the noise."""
        return np.nan_to_num(self.divergence) > 3 * np.nan_to_num(self.noise, posinf=0.0)


def compare(first: RoutingProfile, second: RoutingProfile) -> RoutingDrift:
    """Compares two runs of one model. Raises InvalidInputError for models of different shape."""
    shapes = [(p.model.num_layers, p.model.num_experts) for p in (first, second)]
    if shapes[0] != shapes[1]:
        raise InvalidInputError(f"the profiles have {shapes[0]} and {shapes[1]} layers and experts: compare one model.")
    before, after = (profile.counts.counts.sum(0) for profile in (first, second))
    rows = [_top(before[layer], after[layer]) for layer in range(len(before))]
    common, carried, own = (np.array(column) for column in zip(*rows, strict=True))
    return RoutingDrift(
        measures.jensen_shannon(before, after), measures.jensen_shannon_noise(before, after), common, carried, own
    )


def _top(before: Array, after: Array) -> tuple[float, float, float]:
    if not before.any() or not after.any():
        return float("nan"), float("nan"), float("nan")
    size = measures.experts_for(before, 0.8)
    top, own = (set(np.argsort(-counts, kind="stable")[:size].tolist()) for counts in (before, after))
    return (
        len(top & own) / size,
        float(after[list(top)].sum() / after.sum()),
        float(after[list(own)].sum() / after.sum()),
    )
