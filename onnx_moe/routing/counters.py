"""Profiles of counters, and counter files: what is known without a trace, and how a session is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.counts import SHAPES, RoutingCounts, shaped
from onnx_moe.routing.profile import ProfiledModel, RoutingProfile, profile_trace
from onnx_moe.routing.recording import LayerCounters, Recording

#: Uses of an expert fade by this much with each call of its layer, where the plugin counts them itself.
DECAY = 0.95

#: Tokens of the sketch's first window of time, of which counters have none.
_WINDOW_TOKENS = 16


def profile_recording(
    recording: Recording,
    *,
    name: str = "",
    expert_bytes: int | None = None,
    source: str = "",
    facts: Mapping[str, str] | None = None,
    class_of_request: Mapping[int, str] | None = None,
) -> RoutingProfile:
    """The profile of what a session recorded: of every call, or of counters (onnx_moe.trace = counters).

    Raises InvalidInputError where nothing ran.
    """
    facts = {"recorder": recording.mode, **(facts or {})}
    if recording.mode == "full":
        return profile_trace(
            recording.trace,
            name=name,
            expert_bytes=expert_bytes,
            source=source,
            dropped_calls=recording.dropped_calls,
            facts=facts,
            class_of_request=class_of_request,
        )
    return profile_counters(recording.layers, name=name, expert_bytes=expert_bytes, source=source, facts=facts)


def profile_counters(
    layers: Sequence[LayerCounters],
    *,
    name: str = "",
    expert_bytes: int | None = None,
    source: str = "",
    facts: Mapping[str, str] | None = None,
) -> RoutingProfile:
    """The profile of counters: loads, gate mass and what follows from them. Nothing is known of time, of pairs, of
    layers after each other or of caches. Raises InvalidInputError for no layers, or layers of different sizes.
    """
    shapes = {(layer.counts.shape[1], layer.top_k) for layer in layers}
    if len(shapes) != 1:
        raise InvalidInputError(
            f"the counters have {sorted(shapes)} experts and top_k: a profile needs one layer at least, and all of one "
            "size."
        )
    experts, top_k = shapes.pop()
    kinds = {"mass": float, "mass_squares": float, "probability_sums": float, "window_mass": float}
    kinds["window_probabilities"] = float
    sizes = (len(layers), experts, top_k)
    columns = {each: shaped(each, np.empty(0, kinds.get(each, np.int64)), *sizes) for each in SHAPES}
    for name_of_column in ("calls", "tokens", "counts", "mass"):
        values = np.stack([getattr(layer, name_of_column) for layer in layers], axis=1)
        columns["uses" if name_of_column == "counts" else name_of_column] = values
    columns["weighted_uses"] = columns["uses"].copy()
    columns["mass_squares"][:] = np.nan  # not counted
    columns["first_use"][:] = -1
    columns["window_tokens"][:] = _WINDOW_TOKENS
    model = ProfiledModel(name, tuple(layer.name for layer in layers), experts, top_k, expert_bytes)
    return RoutingProfile(model, RoutingCounts(*sizes, columns), None, source, facts=facts or {})


def write_counter_file(counts: RoutingCounts, path: str | Path) -> None:
    """Writes how much each expert is used, for a session's entry "onnx_moe.counters": it starts with the most used ones
    in memory, and "onnx_moe.pinned" keeps the first of them there (docs/residency.md).

    A use fades as where the plugin counts (DECAY), so that what a session learns soon weighs as much as the file.
    Raises InvalidInputError for counts of no tokens.
    """
    tokens = counts["tokens"].sum(0)
    if not tokens.any():
        raise InvalidInputError("the profile holds no token: record some before writing counters.")
    rates = counts.counts.sum(0) / np.maximum(tokens, 1)[:, None]
    write_counters(rates / (1 - DECAY), path)


def write_counters(values: NDArray[np.float64], path: str | Path) -> None:
    """Writes values [L, E] as ONNX Runtime's text format of expert counters; makes folders."""
    lines = ["moe_expert_state 1"]
    for layer, of_layer in enumerate(values):
        # Each layer's expert 0, so that all layers are in the file.
        experts = sorted({0, *np.flatnonzero(of_layer).tolist()})
        lines += [f'"main" {layer} MoEBlockFP4 {expert} {of_layer[expert]:.9g}' for expert in experts]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
