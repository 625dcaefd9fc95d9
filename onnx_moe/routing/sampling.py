"""The stretch of a recording that is kept in full, to be replayed against caches: whole passes through the model."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnx_moe.routing.trace import DECODE, PREFILL, Call, RoutingTrace, pass_numbers

logger = logging.getLogger(__name__)

Calls = NDArray[np.int64]

NO_WHOLE_PASS = (
    "No pass through all layers was recorded whole and in order, so caches and predictors cannot be replayed: record "
    "the layers of each step one after the other."
)

#: Decoding steps that a sample has at least, where the recording does: a cache is filled by some before others count.
LEAST_STEPS = 16
#: The same of every phase: one prompt is enough.
LEAST_PASSES = {DECODE: LEAST_STEPS, PREFILL: 1}


def sample_of(trace: RoutingTrace, expert_ids: int) -> RoutingTrace | None:
    """The last whole passes of a trace, with at most about so many expert ids: decoding steps, or prompts where nothing
    was decoded. None where no pass calls every layer that the phase has calls of.

    Where few passes fit, they are cut by rows, the same rows in every layer: fewer sequences of a batch, or the
    beginning of a prompt.
    """
    for phase in (DECODE, PREFILL):
        calls = np.flatnonzero((trace.phases == phase) & (trace.tokens_of_calls > 0))
        if calls.size:
            return _last_passes(trace, calls, expert_ids, LEAST_PASSES[phase])
    return None


def _last_passes(trace: RoutingTrace, calls: Calls, expert_ids: int, least: int) -> RoutingTrace | None:
    """Of calls of one phase. Ids are touched last: there may be more of them than memory holds twice."""
    layers, sizes = trace.layers[calls], np.diff(trace.offsets)[calls]
    passes = pass_numbers(layers, trace.requests[calls], trace.phases[calls], sizes)
    num_layers = len(np.unique(layers))
    whole = np.flatnonzero(np.bincount(passes) == num_layers)
    if not whole.size:
        return None
    of_pass = np.bincount(passes, weights=sizes).astype(np.int64)[whole]
    least = min(least, len(whole))
    if of_pass[-least:].sum() <= expert_ids:
        kept = int(np.searchsorted(np.cumsum(of_pass[::-1]), expert_ids, side="right"))
        return trace.select(calls[np.isin(passes, whole[-kept:])])
    chosen = trace.select(calls[np.isin(passes, whole[-least:])])
    return chosen.first_rows(rows_that_fit(expert_ids, num_layers, trace.top_k, least))


def sample_notes(trace: RoutingTrace, sample: RoutingTrace | None) -> tuple[str, ...]:
    """What must be said of a sample."""
    if sample is None:
        logger.warning(NO_WHOLE_PASS)
        return (NO_WHOLE_PASS,)
    recorded = trace.tokens_of_calls[trace.phases == sample.phases[0]]
    return cut_notes(sample, int(recorded[-sample.num_calls :].max()))


def cut_notes(sample: RoutingTrace, recorded_rows: int) -> tuple[str, ...]:
    """What must be said of a sample of calls that had recorded_rows rows."""
    rows = int(sample.tokens_of_calls.max())
    if rows >= recorded_rows:
        return ()
    if sample.phases[0] == PREFILL:
        return (f"Caches are replayed on the first {rows:,} tokens of the last prompt, which has more.",)
    return (f"Caches are replayed on {rows:,} of up to {recorded_rows:,} sequences that were decoded together.",)


def rows_that_fit(expert_ids: int, num_layers: int, top_k: int, passes: int) -> int:
    """Rows of a pass, so many of which fit: at least 1."""
    return max(1, expert_ids // (num_layers * top_k * passes))


@dataclass
class PassKeeper:
    """Keeps the calls that `sample_of` may want of a recording that is still going on, in bounded memory: prompts are
    the first to go once something is decoded, then the oldest passes.
    """

    expert_ids: int
    num_layers: int
    top_k: int
    _passes: dict[int, deque[list[Call]]] = field(default_factory=lambda: {PREFILL: deque(), DECODE: deque()})
    _kept: int = 0
    _longest: dict[int, int] = field(default_factory=lambda: {PREFILL: 0, DECODE: 0})

    def add(self, call: Call) -> None:
        """Takes in a call, cut to the rows that a sample could have."""
        if self.expert_ids <= 0 or call.expert_ids.size == 0:
            return
        rows = rows_that_fit(self.expert_ids, self.num_layers, self.top_k, LEAST_PASSES[call.phase])
        self._longest[call.phase] = max(self._longest[call.phase], len(call.expert_ids))
        weights = None if call.expert_weights is None else call.expert_weights[:rows].copy()
        call = replace(call, expert_ids=call.expert_ids[:rows].copy(), expert_weights=weights)
        passes = self._passes[call.phase]
        if passes and _continues(passes[-1][-1], call):
            passes[-1].append(call)
        else:
            passes.append([call])
        self._kept += call.expert_ids.size
        while self._kept > self.expert_ids and sum(map(len, self._passes.values())) > 1:
            self._drop()

    def _drop(self) -> None:
        prompts, steps = self._passes[PREFILL], self._passes[DECODE]
        dropped = (prompts if prompts and steps else prompts or steps).popleft()
        self._kept -= sum(call.expert_ids.size for call in dropped)

    def sample(self, num_experts: int, layer_names: tuple[str, ...]) -> RoutingTrace | None:
        """The sample of what was kept; None where there is none."""
        calls = [call for passes in self._passes.values() for one in passes for call in one]
        return sample_of(RoutingTrace.of_calls(calls, num_experts, layer_names), self.expert_ids) if calls else None

    def notes(self, sample: RoutingTrace | None) -> tuple[str, ...]:
        """What must be said of it."""
        if sample is not None:
            return cut_notes(sample, self._longest[int(sample.phases[0])])
        return (NO_WHOLE_PASS,) if self._kept else ()


def _continues(last: Call, call: Call) -> bool:
    same = (last.request, len(last.expert_ids)) == (call.request, len(call.expert_ids))
    return same and call.layer > last.layer
