"""The native routing sketch, by ctypes: what `onnx_moe.routing.sketch` stands on."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe import _native
from onnx_moe.routing.trace import RoutingTrace

Array = NDArray[Any]

#: onnx_moe_number.
_NUMBERS: tuple[type[np.generic], ...] = (np.int64, np.uint32, np.float64)


class TracedCalls(ctypes.Structure):
    """onnx_moe_traced_calls."""

    _fields_ = (
        ("num_calls", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("layers", "phases", "requests", "offsets", "experts")),
        ("weights", ctypes.c_void_p),
        ("probabilities", ctypes.c_void_p),
    )


_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "onnx_moe_sketch_create": (
        ctypes.c_int,
        (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p)),
    ),
    "onnx_moe_sketch_free": (None, (ctypes.c_void_p,)),
    "onnx_moe_sketch_add": (ctypes.c_int, (ctypes.c_void_p, ctypes.POINTER(TracedCalls))),
    "onnx_moe_sketch_column": (
        ctypes.c_int,
        (
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.POINTER(ctypes.c_int64),
            ctypes.POINTER(ctypes.c_int32),
        ),
    ),
}


class NativeSketch:
    """An onnx_moe_sketch, freed with this object. Not for two threads at once."""

    def __init__(self, num_layers: int, num_experts: int, top_k: int) -> None:
        self._library = _native.library()
        _native.declare(self._library, _SIGNATURES)
        self._handle = ctypes.c_void_p()
        status = self._library.onnx_moe_sketch_create(num_layers, num_experts, top_k, ctypes.byref(self._handle))
        _native.check(status)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle:
            self._library.onnx_moe_sketch_free(handle)

    def add(self, trace: RoutingTrace, calls: slice, probabilities: Array | None) -> None:
        """Adds some calls of a trace; probabilities [tokens of these calls, num_experts]."""
        first, last, _ = calls.indices(trace.num_calls)
        # Kept until the call returns: ctypes sees addresses only.
        columns: list[Array] = [
            np.ascontiguousarray(trace.layers[first:last], np.int32),
            np.ascontiguousarray(trace.phases[first:last], np.uint8),
            np.ascontiguousarray(trace.requests[first:last], np.int32),
            np.ascontiguousarray(trace.offsets[first : last + 1], np.int64),
            np.ascontiguousarray(trace.experts, np.int32),
        ]
        weights = None if trace.weights is None else np.ascontiguousarray(trace.weights, np.float32)
        known = None if probabilities is None else np.ascontiguousarray(probabilities, np.float32)
        addresses = (column.ctypes.data for column in columns)
        optional = (None if array is None else array.ctypes.data for array in (weights, known))
        traced = TracedCalls(last - first, *addresses, *optional)
        _native.check(self._library.onnx_moe_sketch_add(self._handle, ctypes.byref(traced)))

    def column(self, name: str) -> Array:
        """A copy of a column of counts, flat."""
        data, length, number = ctypes.c_void_p(), ctypes.c_int64(), ctypes.c_int32()
        status = self._library.onnx_moe_sketch_column(
            self._handle, name.encode(), ctypes.byref(data), ctypes.byref(length), ctypes.byref(number)
        )
        _native.check(status)
        kind = np.dtype(_NUMBERS[number.value])
        if length.value == 0:
            return np.empty(0, kind)
        return np.frombuffer(ctypes.string_at(data.value or 0, length.value * kind.itemsize), kind).copy()
