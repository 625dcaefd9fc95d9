"""A recorded routing: which experts each call of each layer chose."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError

Ints = NDArray[np.int32]

#: What reading a damaged or foreign .npz raises.
DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)

#: Phases of a call, by number: tokens of a prompt together, or one new token of each sequence.
PHASES = ("prefill", "decode")
PREFILL, DECODE = range(2)


def phase_number(name: str) -> int:
    """The number of a phase's name; InvalidInputError for another one."""
    if name not in PHASES:
        raise InvalidInputError(f"phase={name!r} is unknown: use {', '.join(PHASES)} or None.")
    return PHASES.index(name)


@dataclass(frozen=True)
class Call:
    """One call of a layer's router: the experts [T, k] of T tokens and their weights, if known.

    In a trace, weights are kept where all calls have them.
    """

    layer: int
    expert_ids: Ints
    expert_weights: NDArray[np.float32] | None = None
    phase: int = DECODE
    request: int = 0


@dataclass(frozen=True)
class RoutingTrace:
    """Calls of routers in the order in which they ran, column by column.

    layers, phases, requests [V]: of call v. offsets [V + 1]: call v chose experts[offsets[v] : offsets[v + 1]], T · k
    ids of [0, num_experts), the top_k of a token together, best first. weights: as long as experts, or None.
    layer_names [num_layers]: of their nodes, or numbers.
    """

    num_experts: int
    top_k: int
    layer_names: tuple[str, ...]
    layers: Ints
    phases: NDArray[np.uint8]
    requests: Ints
    offsets: NDArray[np.int64]
    experts: Ints
    weights: NDArray[np.float32] | None = None

    @property
    def num_layers(self) -> int:
        """Layers that the trace may have, whether they were called or not."""
        return len(self.layer_names)

    @property
    def num_calls(self) -> int:
        """Calls of layers."""
        return len(self.layers)

    def __post_init__(self) -> None:
        check_sizes(self.num_experts, self.num_layers, self.top_k)
        calls = len(self.layers)
        lengths = {"phases": len(self.phases), "requests": len(self.requests), "offsets": len(self.offsets) - 1}
        for name, length in lengths.items():
            if length != calls:
                raise InvalidInputError(f"{name} is for {length} calls, but layers names {calls}: give one for each.")
        sizes = np.diff(self.offsets)
        whole = self.offsets[0] == 0 and self.offsets[-1] == len(self.experts)
        if not whole or bool((sizes % self.top_k).any()) or bool((sizes < 0).any()):
            raise InvalidInputError(
                f"offsets do not divide the {len(self.experts)} experts into calls of whole tokens of {self.top_k}: "
                "they must rise from 0 to that number."
            )
        if self.weights is not None and len(self.weights) != len(self.experts):
            raise InvalidInputError(f"{len(self.weights)} weights are given for {len(self.experts)} experts.")
        if self.weights is not None and not bool(np.isfinite(self.weights).all()):
            wrong = int(np.flatnonzero(~np.isfinite(self.weights))[0])
            raise InvalidInputError(f"the trace holds weight {self.weights[wrong]} at position {wrong}: give numbers.")
        _check_range("phase", self.phases, len(PHASES))
        _check_range("layer", self.layers, self.num_layers)
        _check_range("expert", self.experts, self.num_experts)

    def select(self, calls: NDArray[Any] | slice) -> RoutingTrace:
        """The trace of some calls: indices, a mask or a slice."""
        chosen = np.arange(self.num_calls)[calls]
        sizes = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        positions = np.repeat(self.offsets[chosen] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return RoutingTrace(
            self.num_experts,
            self.top_k,
            self.layer_names,
            self.layers[chosen],
            self.phases[chosen],
            self.requests[chosen],
            offsets,
            self.experts[positions],
            None if self.weights is None else self.weights[positions],
        )

    @property
    def tokens_of_calls(self) -> NDArray[np.int64]:
        """Tokens of each call [V]."""
        return np.diff(self.offsets) // self.top_k

    @property
    def passes_of_calls(self) -> NDArray[np.int64]:
        """The pass of each call [V]: see `pass_numbers`."""
        return pass_numbers(self.layers, self.requests, self.phases, self.tokens_of_calls)

    def calls(self) -> Iterator[Call]:
        """The calls one by one; their arrays are views."""
        for call in range(self.num_calls):
            part = slice(int(self.offsets[call]), int(self.offsets[call + 1]))
            weights = None if self.weights is None else self.weights[part].reshape(-1, self.top_k)
            yield Call(
                int(self.layers[call]),
                self.experts[part].reshape(-1, self.top_k),
                weights,
                int(self.phases[call]),
                int(self.requests[call]),
            )

    def token_by_token(self) -> RoutingTrace:
        """The same choices as decoding would make them: each token passes all layers before the next one does."""
        tokens = self.tokens_of_calls
        passes = np.repeat(self.passes_of_calls, tokens)
        calls = np.repeat(np.arange(self.num_calls), tokens)
        rows = np.arange(len(calls)) - np.repeat(self.offsets[:-1] // self.top_k, tokens)
        order = np.lexsort((calls, rows, passes))
        chosen = calls[order]

        def reordered(column: NDArray[Any]) -> NDArray[Any]:
            return column.reshape(-1, self.top_k)[order].reshape(-1)

        return replace(
            self,
            layers=self.layers[chosen],
            phases=self.phases[chosen],
            requests=self.requests[chosen],
            offsets=np.arange(len(order) + 1, dtype=np.int64) * self.top_k,
            experts=reordered(self.experts),
            weights=None if self.weights is None else reordered(self.weights),
        )

    def first_rows(self, rows: int) -> RoutingTrace:
        """The same calls with their first tokens alone: at most `rows` of each."""
        tokens = self.tokens_of_calls
        kept = np.minimum(tokens, rows)
        places = np.arange(len(self.experts) // self.top_k) - np.repeat(self.offsets[:-1] // self.top_k, tokens)
        chosen = np.repeat(places < rows, self.top_k)
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64) * self.top_k,
            experts=self.experts[chosen],
            weights=None if self.weights is None else self.weights[chosen],
        )

    def called_layers_only(self) -> RoutingTrace:
        """The same calls in a trace that has no other layers than those that were called."""
        called = np.unique(self.layers)
        if len(called) in (0, self.num_layers):
            return self
        names = tuple(self.layer_names[layer] for layer in called)
        return replace(self, layer_names=names, layers=np.searchsorted(called, self.layers).astype(np.int32))

    @classmethod
    def of_calls(cls, calls: Sequence[Call], num_experts: int, layer_names: int | Sequence[str]) -> RoutingTrace:
        """The trace of calls in their order; layer_names may be their number. All must have the same k."""
        names = tuple(map(str, range(layer_names))) if isinstance(layer_names, int) else tuple(layer_names)
        widths = {call.expert_ids.shape[-1] for call in calls}
        if len(widths) != 1:
            raise InvalidInputError(f"the calls have top_k {sorted(widths)}: a trace needs one top_k, and one call.")
        sizes = [call.expert_ids.size for call in calls]
        for call in calls:
            if call.expert_weights is not None and call.expert_weights.size != call.expert_ids.size:
                raise InvalidInputError(
                    f"a call has {call.expert_weights.size} weights for {call.expert_ids.size} experts: give one for "
                    "each."
                )
        weights = [call.expert_weights for call in calls if call.expert_weights is not None]
        return cls(
            num_experts,
            widths.pop(),
            names,
            as_int32("layer", [call.layer for call in calls]),
            np.array([call.phase for call in calls], np.uint8),
            as_int32("request", [call.request for call in calls]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.concatenate([as_int32("expert", call.expert_ids).reshape(-1) for call in calls]),
            np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in weights])
            if len(weights) == len(calls)
            else None,
        )


def pass_numbers(
    layers: Ints, requests: Ints, phases: NDArray[np.uint8], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The pass of each call [V], numbered from 0: a run of calls of rising layers with the same request, phase and
    size, which is what one execution of a model makes.
    """
    new = np.ones(len(layers), bool)
    same = [column[1:] == column[:-1] for column in (requests, phases, sizes)]
    new[1:] = ~((layers[1:] > layers[:-1]) & np.logical_and.reduce(same))
    return np.cumsum(new) - 1


def as_int32(name: str, values: Any) -> Ints:
    """Integers as int32; InvalidInputError for one that does not fit, rather than another number."""
    given = np.asarray(values)
    if given.dtype == np.int32:
        return given
    limits = np.iinfo(np.int32)
    if given.size and (given.min() < limits.min or given.max() > limits.max):
        wrong = given.min() if given.min() < limits.min else given.max()
        raise InvalidInputError(f"{name} {wrong} does not fit into 32 bits: number {name}s from 0.")
    return given.astype(np.int32)


def check_sizes(num_experts: int, num_layers: int, top_k: int) -> None:
    """InvalidInputError unless all are at least 1 and top_k is at most num_experts."""
    for name, value in (("num_experts", num_experts), ("num_layers", num_layers), ("top_k", top_k)):
        if value < 1:
            raise InvalidInputError(f"{name} is {value}, but must be at least 1.")
    if top_k > num_experts:
        raise InvalidInputError(f"top_k is {top_k}, but there are {num_experts} experts: use at most as many.")


def _check_range(name: str, values: NDArray[Any], count: int) -> None:
    if len(values) and (values.min() < 0 or values.max() >= count):
        wrong = int(np.flatnonzero((values < 0) | (values >= count))[0])
        raise InvalidInputError(
            f"the trace holds {name} {values[wrong]} at position {wrong}, but {name}s are numbered 0 to {count - 1}."
        )
