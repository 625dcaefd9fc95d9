"""Sections on time: balance by window, overlap and reuse, drift inside the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe.routing import measures
from onnx_moe.routing.balance import balance_of
from onnx_moe.routing.counts import LAGS
from onnx_moe.routing.document.load import halves_of
from onnx_moe.routing.trace import PHASES

if TYPE_CHECKING:
    from onnx_moe.routing.profile import RoutingProfile


def balance(profile: RoutingProfile) -> dict[str, Any]:
    """The load-balancing value by layer and window."""
    return {phase: _balance(profile, i) for i, phase in enumerate(PHASES)}


def _balance(profile: RoutingProfile, phase: int) -> dict[str, Any] | None:
    if not profile.counts["tokens"][phase].any():
        return None
    history = balance_of(profile.counts, phase)  # of counters, without windows
    return {
        "basis": history.basis,
        "per_layer": history.per_layer,
        "window_tokens": history.window_tokens,
        "windows": history.windows,
        "entropy": history.entropy,
    }


def time_structure(profile: RoutingProfile) -> dict[str, Any]:
    """Overlap by lag, and gaps between uses."""
    return {phase: _time(profile, i) for i, phase in enumerate(PHASES)}


def _time(profile: RoutingProfile, phase: int) -> dict[str, Any] | None:
    counts = profile.counts
    tokens = counts["tokens"][phase]
    if not counts["lag_tokens"][phase].any() and not counts["gaps"][phase].any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = counts["lag_shared"][phase] / (counts["lag_tokens"][phase] * counts.top_k)
        # A token has expert e with probability r_e, and shares it with another with r_e²; of top_k experts.
        rate = counts.counts[phase] / tokens[:, None]
        chance = (rate**2).sum(-1) / counts.top_k
        # Experts of a call that the token before it in its sequence did not choose.
        fresh = counts.top_k * (1 - overlap[:, 0])
    gaps = counts["gaps"][phase]
    bins = int(np.flatnonzero(gaps.sum(0)).max(initial=0)) + 1
    edges = 2 ** np.arange(bins)
    return {
        "lags": np.arange(1, LAGS + 1),
        "overlap": overlap,
        "chance": chance,
        "new_experts": fresh,
        "reuse_edges": edges,
        "reuse_counts": gaps[:, :bins],
        "reuse_median": [measures.median_of_bins(edges, row[:bins]) for row in gaps],
    }


def drift(profile: RoutingProfile) -> dict[str, Any]:
    """Divergence of the second half from the first."""
    return {phase: _drift(profile, i) for i, phase in enumerate(PHASES)}


def _drift(profile: RoutingProfile, phase: int) -> dict[str, Any] | None:
    first, second = halves_of(profile, phase)
    if not first.any() or not second.any():
        return None
    return {
        "per_layer": measures.jensen_shannon(first, second),
        "noise": measures.jensen_shannon_noise(first, second),
    }


def prompt_classes(profile: RoutingProfile) -> dict[str, Any] | None:
    """How far the routing of each kind of prompt is from that of each other: means over layers."""
    classes = profile.classes
    if classes is None:
        return None
    pairs = [(first, second) for first in classes.counts for second in classes.counts]
    size = len(classes.names)

    def table(measure: Any) -> Any:
        values = [np.nanmean(np.where(np.isfinite(rows := measure(*pair)), rows, np.nan)) for pair in pairs]
        return np.array(values).reshape(size, size)

    return {
        "names": classes.names,
        "tokens": classes.tokens.max(1),
        "divergence": table(measures.jensen_shannon),
        "noise": table(measures.jensen_shannon_noise),
    }
