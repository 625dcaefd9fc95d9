"""What the routers of a session chose: recorded by the plugin, read here."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from onnx_moe import _native
from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.trace import RoutingTrace, phase_number
from onnx_moe.session import config_entry

_BY_SHAPE = -1


@dataclass(frozen=True)
class LayerCounters:
    """Counters of one layer, by phase (prefill, decode).

    calls, tokens [2]; counts int64 [2, num_experts]: how often each expert was chosen; mass float64 [2, num_experts]:
    the sum of its weights. Shared experts are left out.
    """

    name: str
    top_k: int
    calls: NDArray[np.int64]
    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]
    mass: NDArray[np.float64]


class Recording:
    """What a session records while `record` lasts, and after."""

    def __init__(self, name: str, mode: str) -> None:
        self._name = name.encode()
        self._mode = mode
        self._kept: tuple[tuple[LayerCounters, ...], RoutingTrace | None, int] | None = None

    def label(self, *, phase: str | None = None, request: int = 0) -> None:
        """Later runs belong to `request` and to `phase`: "prefill", "decode", or None.

        None: `onnx_moe.generation.DecoderSession` knows a prompt from new tokens and says so. Elsewhere the shape of
        each call decides: it decodes when its hidden states [..., sequence, H] have sequences of length 1. Exported
        decoders flatten them to [tokens, H], where only a single row decodes: for batches, name the phase.
        """
        if not -(2**31) <= request < 2**31:
            raise InvalidInputError(f"request is {request}, but must fit into 32 bits: number requests from 0.")
        number = _BY_SHAPE if phase is None else phase_number(phase)
        _native.check(_native.library().onnx_moe_recording_label(self._name, number, request))

    @property
    def mode(self) -> str:
        """What the session keeps: "counters" or "full"."""
        return self._mode

    @property
    def layers(self) -> tuple[LayerCounters, ...]:
        """Counters of the layers so far, in the order of their first calls."""
        return self._read()[0]

    @property
    def dropped_calls(self) -> int:
        """Calls that `trace` lacks, because it had reached the session entry onnx_moe.trace_limit."""
        return self._read()[2]

    @property
    def trace(self) -> RoutingTrace:
        """Every call so far. Raises InvalidInputError when the session keeps counters only, or nothing ran."""
        if self._mode != "full":
            raise InvalidInputError("the session keeps counters only: make it with the entry onnx_moe.trace = full.")
        trace = self._read()[1]
        if trace is None:
            raise InvalidInputError("no call of a router is recorded: run the session inside `record`.")
        return trace

    def close(self) -> None:
        """Keeps what is recorded so far; what the session does later is not part of it."""
        self._kept = self._read()

    def _read(self) -> tuple[tuple[LayerCounters, ...], RoutingTrace | None, int]:
        if self._kept is not None:
            return self._kept
        library, handle = _native.library(), ctypes.c_void_p()
        _native.check(library.onnx_moe_recording_take(self._name, ctypes.byref(handle)))
        try:
            return _read(handle)
        finally:
            library.onnx_moe_recording_free(handle)


@contextmanager
def record(session: onnxruntime.InferenceSession) -> Iterator[Recording]:
    """Records the routing of what `session` runs inside the block; read it from the Recording, inside or after.

    The session must come from `onnx_moe.InferenceSession` with options whose entry "onnx_moe.trace" is "counters" or
    "full". What it recorded before is forgotten. Raises InvalidInputError otherwise.
    """
    options = session.get_session_options()
    mode, name = config_entry(options, "onnx_moe.trace"), config_entry(options, "onnx_moe.trace_name")
    if mode in (None, "off") or name is None:
        raise InvalidInputError(
            'the session does not record routing: call options.add_session_config_entry("onnx_moe.trace", "full") '
            '(or "counters") and make it by onnx_moe.InferenceSession(path, options).'
        )
    recording = Recording(name, str(mode))
    _native.check(_native.library().onnx_moe_recording_clear(name.encode()))
    recording.label()
    try:
        yield recording
    finally:
        recording.close()


@contextmanager
def known_phase(session: onnxruntime.InferenceSession, phase: int) -> Iterator[None]:
    """What `session` runs in the block belongs to PREFILL or DECODE where no label says another, if it records."""
    name = config_entry(session.get_session_options(), "onnx_moe.trace_name")
    if name is None:
        yield
        return
    set_phase = _native.library().onnx_moe_recording_default_phase
    _native.check(set_phase(name.encode(), phase))
    try:
        yield
    finally:
        _native.check(set_phase(name.encode(), _BY_SHAPE))


def _column(pointer: Any, length: int, kind: type[np.generic]) -> NDArray[Any]:
    """A copy of `length` values behind a pointer, which may be null where there are none."""
    if length == 0:
        return np.empty(0, kind)
    size = length * np.dtype(kind).itemsize
    return np.frombuffer(ctypes.string_at(pointer, size), kind).copy()


def _read(handle: ctypes.c_void_p) -> tuple[tuple[LayerCounters, ...], RoutingTrace | None, int]:
    calls = _native.RecordedCalls()
    _native.library().onnx_moe_recording_calls(handle, ctypes.byref(calls))
    layers = tuple(_read_layer(handle, index) for index in range(calls.num_layers))
    trace = _read_calls(calls, layers) if calls.num_calls else None
    return layers, trace, calls.dropped_calls


def _read_layer(handle: ctypes.c_void_p, index: int) -> LayerCounters:
    layer = _native.RecordedLayer()
    _native.check(_native.library().onnx_moe_recording_layer(handle, index, ctypes.byref(layer)))
    experts = layer.num_experts
    return LayerCounters(
        layer.name.decode(),
        layer.top_k,
        np.array(layer.calls, np.int64),
        np.array(layer.tokens, np.int64),
        np.stack([_column(pointer, experts, np.int64) for pointer in layer.counts]),
        np.stack([_column(pointer, experts, np.float64) for pointer in layer.mass]),
    )


def _read_calls(calls: _native.RecordedCalls, layers: tuple[LayerCounters, ...]) -> RoutingTrace:
    widths = {layer.top_k for layer in layers}
    if len(widths) != 1:
        raise InvalidInputError(f"the layers have top_k {sorted(widths)}: a trace needs one top_k for all.")
    offsets = _column(calls.offsets, calls.num_calls + 1, np.int64)
    return RoutingTrace(
        max(layer.counts.shape[1] for layer in layers),
        widths.pop(),
        tuple(layer.name for layer in layers),
        _column(calls.layers, calls.num_calls, np.int32),
        _column(calls.phases, calls.num_calls, np.uint8),
        _column(calls.requests, calls.num_calls, np.int32),
        offsets,
        _column(calls.experts, int(offsets[-1]), np.int32),
        _column(calls.weights, int(offsets[-1]), np.float32),
    )
