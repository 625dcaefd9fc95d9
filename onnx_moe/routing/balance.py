"""The load-balancing value of a run, by layer and by window of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.routing import measures
from onnx_moe.routing.counts import RoutingCounts

Array = NDArray[Any]


@dataclass(frozen=True)
class BalanceHistory:
    """E · Σ f_e · p_e: 1 at balance, at most E (`onnx_moe.dispatch.compute_load_balancing_loss`).

    basis: what p is taken from: "router_probabilities" of all experts before top-k, which is the value's definition;
    where only the weights of chosen experts are known, "selected_weights"; where not even those, "counts" (p = f, and
    the value is 1 + CV²). per_layer [L], of the whole run; windows and entropy [W, L], of windows of window_tokens
    tokens of a layer. NaN where a layer had no token.
    """

    basis: str
    per_layer: Array
    window_tokens: int
    windows: Array
    entropy: Array


def balance_of(counts: RoutingCounts, phase: int | None) -> BalanceHistory:
    """The balance of a phase, or of both together (None, which has no windows: they run apart).

    Counts that were made of counters have no windows either.
    """
    phases = slice(None) if phase is None else slice(phase, phase + 1)
    basis, total, by_window = _basis(counts)
    chosen = counts.counts[phases].sum(0)
    mass = chosen if total is None else counts[total][phases].sum(0)
    if phase is None:
        empty = np.empty((0, counts.num_layers))
        return BalanceHistory(basis, measures.load_balancing(chosen, mass), 0, empty, empty)
    size = int(counts["window_tokens"][phase])
    if not counts["window_counts"][phase].any():
        empty = np.empty((0, counts.num_layers))
        return BalanceHistory(basis, measures.load_balancing(chosen, mass), size, empty, empty)
    used = -(-int(counts["tokens"][phase].max()) // size)
    windows = counts["window_counts"][phase, :used]
    window_mass = windows if by_window is None else counts[by_window][phase, :used]
    return BalanceHistory(
        basis,
        measures.load_balancing(chosen, mass),
        size,
        measures.load_balancing(windows, window_mass),
        measures.entropy(windows),
    )


def _basis(counts: RoutingCounts) -> tuple[str, str | None, str | None]:
    """Name of the basis, and the columns that hold it; None for the counts themselves."""
    if counts.has_probabilities:
        return "router_probabilities", "probability_sums", "window_probabilities"
    if counts.has_all_weights:
        return "selected_weights", "mass", "window_mass"
    return "counts", None, None
