"""What a profile is made from: counts of a fixed size, which add up over runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.trace import PHASES

Array = NDArray[Any]

#: Lags of the overlap between tokens, bins of gaps between uses, windows of time: those of the native sketch.
LAGS, GAP_BINS, WINDOWS = 16, 32, 64

#: Shapes of the columns: P phases, L layers, E experts, K top_k, G lags, B bins, W windows, S = L·E + 1.
SHAPES: Mapping[str, str] = {
    "calls": "PL",
    "tokens": "PL",
    "requests": "1",
    "uses": "PLE",
    "rank_counts": "PLEK",
    "weighted_uses": "PLE",
    "mass": "PLE",
    "mass_squares": "PLE",
    "probability_tokens": "PL",
    "probability_sums": "PLE",
    "first_use": "LE",
    "pairs": "LEE",
    "transitions": "LEE",
    "transition_tokens": "L",
    "layer_shared": "LL",
    "layer_tokens": "LL",
    "layer_sizes": "LL",
    "lag_shared": "PLG",
    "lag_tokens": "PLG",
    "gaps": "PLB",
    "stack_distances": "PS",
    "window_tokens": "P",
    "window_counts": "PWLE",
    "window_mass": "PWLE",
    "window_probabilities": "PWLE",
}

#: Of a layer: pairs are counted in 32 bits.
_MAX_TOKENS = 2**32 - 1

#: Columns that are joined in their own way; all others add up.
_JOINED = ("first_use", "window_tokens", "window_counts", "window_mass", "window_probabilities")


@dataclass(frozen=True)
class RoutingCounts:
    """Counts of a run. Columns have the shapes of SHAPES; onnx_moe.h says what each one counts. uses: rank_counts
    summed over the ranks, or what is known instead.
    """

    num_layers: int
    num_experts: int
    top_k: int
    columns: Mapping[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    @property
    def counts(self) -> Array:
        """int64 [P, L, E]: how often each expert was chosen."""
        return self["uses"]

    @property
    def has_weights(self) -> bool:
        """Whether the weights of chosen experts are known, of some calls at least."""
        return bool(self["weighted_uses"].any())

    @property
    def has_all_weights(self) -> bool:
        """Whether they are known of every call."""
        return self.has_weights and bool((self["weighted_uses"] == self.counts).all())

    @property
    def has_probabilities(self) -> bool:
        """Whether the probabilities of all experts before top-k are known, of every token."""
        return bool(self["probability_tokens"].any()) and bool((self["probability_tokens"] == self["tokens"]).all())

    def pairs_of(self, layer: int) -> Array:
        """int64 [E, E], symmetric: tokens that chose both experts; on the diagonal, selections of each."""
        ordered = self["pairs"][layer].astype(np.int64)
        both: Array = ordered + ordered.T
        np.fill_diagonal(both, self.counts[:, layer].sum(0))
        return both

    def merge(self, later: RoutingCounts) -> RoutingCounts:
        """The counts of both runs, as if `later` had followed. InvalidInputError for another number of anything."""
        mine = (self.num_layers, self.num_experts, self.top_k)
        theirs = (later.num_layers, later.num_experts, later.top_k)
        if mine != theirs:
            raise InvalidInputError(
                f"profiles of {theirs} and {mine} (layers, experts, top_k) do not add up: merge runs of one model."
            )
        tokens = int((self["tokens"].sum(0) + later["tokens"].sum(0)).max())
        if tokens > _MAX_TOKENS:
            raise InvalidInputError(
                f"the profiles have {tokens} tokens of a layer together, but a profile holds {_MAX_TOKENS}: "
                "keep them apart."
            )
        columns = {name: self[name] + later[name] for name in SHAPES if name not in _JOINED}
        tokens_before = self["tokens"].sum(0)[:, None]
        moved = np.where(later["first_use"] < 0, -1, later["first_use"] + tokens_before)
        columns["first_use"] = np.where(self["first_use"] < 0, moved, self["first_use"])
        return RoutingCounts(*mine, {**columns, **_merge_windows(self, later)})


def shaped(name: str, flat: Array, num_layers: int, num_experts: int, top_k: int) -> Array:
    """A column in its shape; zeros for one that the sketch left empty."""
    sizes = {
        "P": len(PHASES),
        "L": num_layers,
        "E": num_experts,
        "K": top_k,
        "G": LAGS,
        "B": GAP_BINS,
        "W": WINDOWS,
        "S": num_layers * num_experts + 1,
        "1": 1,
    }
    shape = tuple(sizes[letter] for letter in SHAPES[name])
    return flat.reshape(shape) if flat.size else np.zeros(shape, flat.dtype)


def _merge_windows(first: RoutingCounts, second: RoutingCounts) -> dict[str, Array]:
    """The windows of `second` behind those of `first`, joined until all fit; a run's last one may be partly filled."""
    names = ("window_counts", "window_mass", "window_probabilities")
    merged = {name: np.zeros_like(first[name]) for name in names}
    sizes = first["window_tokens"].copy()
    for phase in range(len(PHASES)):
        size = max(int(run["window_tokens"][phase]) for run in (first, second))
        while sum(_used(run, phase, size) for run in (first, second)) > WINDOWS:
            size *= 2
        sizes[phase] = size
        start = 0
        for run in (first, second):
            used = _used(run, phase, size)
            for name in names:
                merged[name][phase, start : start + used] = _joined(run, name, phase, size)[:used]
            start += used
    return {"window_tokens": sizes, **merged}


def _used(run: RoutingCounts, phase: int, size: int) -> int:
    """Windows of `size` tokens that a run fills or begins."""
    return -(-int(run["tokens"][phase].max()) // size)


def _joined(run: RoutingCounts, name: str, phase: int, size: int) -> Array:
    """The windows of a phase with `size` tokens each: a power of two times as long as the run's own."""
    factor = size // int(run["window_tokens"][phase])
    windows = run[name][phase]
    # Windows behind the end are empty, so that a factor beyond WINDOWS joins all of them.
    factor = min(factor, WINDOWS)
    joined: Array = windows.reshape(WINDOWS // factor, factor, *windows.shape[1:]).sum(1, dtype=windows.dtype)
    return joined
