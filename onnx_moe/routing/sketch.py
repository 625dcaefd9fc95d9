"""Counting routing as it comes, in memory that does not grow with the number of tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing._native_sketch import NativeSketch
from onnx_moe.routing.counts import SHAPES, RoutingCounts, shaped
from onnx_moe.routing.trace import RoutingTrace, check_sizes

#: Calls that are counted between two reports of progress.
_CHUNK = 65536


class RoutingSketch:
    """Counts calls of routers; any thread may add to it, in any order of layers that a model's execution gives."""

    def __init__(self, num_experts: int, num_layers: int, top_k: int) -> None:
        check_sizes(num_experts, num_layers, top_k)
        self._sizes = (num_layers, num_experts, top_k)
        self._native = NativeSketch(*self._sizes)
        self._lock = threading.Lock()

    def add(
        self,
        trace: RoutingTrace,
        probabilities: NDArray[Any] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Counts the calls of `trace`.

        probabilities: of all experts before top-k [tokens of all calls, num_experts], where they are known.
        progress: called with the share that is done. Raises InvalidInputError for a trace of another model.
        """
        sizes = (trace.num_layers, trace.num_experts, trace.top_k)
        if sizes != self._sizes:
            raise InvalidInputError(
                f"the trace has {sizes} layers, experts and top_k, but the profile is of {self._sizes}."
            )
        tokens = len(trace.experts) // trace.top_k
        if probabilities is not None and probabilities.shape != (tokens, trace.num_experts):
            raise InvalidInputError(
                f"probabilities has shape {list(probabilities.shape)}, but must be [{tokens}, {trace.num_experts}]: "
                "one row for each token of each call, before top-k."
            )
        if probabilities is not None and not bool((np.isfinite(probabilities) & (probabilities >= 0)).all()):
            raise InvalidInputError(
                "probabilities holds negative values or such that are no numbers: pass what the logits become, not the "
                "logits (`router_probabilities`)."
            )
        for first in range(0, trace.num_calls, _CHUNK):
            last = min(first + _CHUNK, trace.num_calls)
            rows = slice(int(trace.offsets[first]) // trace.top_k, int(trace.offsets[last]) // trace.top_k)
            with self._lock:
                self._native.add(trace, slice(first, last), None if probabilities is None else probabilities[rows])
            if progress is not None:
                progress(last / trace.num_calls)

    def counts(self) -> RoutingCounts:
        """What is counted so far."""
        with self._lock:
            names = SHAPES.keys() - {"uses"}
            columns = {name: shaped(name, self._native.column(name), *self._sizes) for name in names}
        return RoutingCounts(*self._sizes, {**columns, "uses": columns["rank_counts"].sum(-1)})
