"""The part of the C API that predicts experts, by ctypes."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe import _native

#: onnx_moe_prediction_rule.
REPEAT, HISTORY, RECENCY, WEIGHTED = range(4)


class Experts(ctypes.Structure):
    """onnx_moe_experts."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("values", ctypes.POINTER(ctypes.c_double)),
    )

    def read(self) -> list[int]:
        """A copy of the ids."""
        return [int(expert) for expert in self.ids[: self.count]]


class Prediction(ctypes.Structure):
    """onnx_moe_prediction."""

    _fields_ = (
        ("rule", ctypes.c_int32),
        ("history", ctypes.c_void_p),
        ("current", ctypes.c_void_p),
        ("num_current", ctypes.c_int64),
        ("most", ctypes.c_int64),
        ("decay", ctypes.c_double),
        ("min_confidence", ctypes.c_double),
        ("weights", ctypes.c_void_p),
    )


_HANDLE = ctypes.c_void_p
_I64 = ctypes.c_int64
_OUT = ctypes.POINTER(Experts)
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "onnx_moe_routing_history_create": (ctypes.c_int, (_I64, ctypes.POINTER(_HANDLE))),
    "onnx_moe_routing_history_free": (None, (_HANDLE,)),
    "onnx_moe_routing_history_record": (ctypes.c_int, (_HANDLE, _HANDLE, _I64)),
    "onnx_moe_routing_history_clear": (ctypes.c_int, (_HANDLE,)),
    "onnx_moe_routing_history_size": (_I64, (_HANDLE,)),
    "onnx_moe_routing_history_last": (ctypes.c_int, (_HANDLE, _OUT)),
    "onnx_moe_routing_history_frequencies": (ctypes.c_int, (_HANDLE, ctypes.c_double, _OUT)),
    "onnx_moe_predict_experts": (ctypes.c_int, (ctypes.POINTER(Prediction), _OUT)),
    "onnx_moe_cross_layer_table_create": (ctypes.c_int, (_I64, _I64, ctypes.POINTER(_HANDLE))),
    "onnx_moe_cross_layer_table_free": (None, (_HANDLE,)),
    "onnx_moe_cross_layer_table_routed": (ctypes.c_int, (_HANDLE, _I64, _HANDLE, _I64)),
    "onnx_moe_cross_layer_table_predict": (ctypes.c_int, (_HANDLE, _I64, _I64, _OUT)),
}


@cache
def _library() -> ctypes.CDLL:
    loaded = _native.library()
    _native.declare(loaded, _SIGNATURES)
    return loaded


def _ids(experts: Sequence[int]) -> NDArray[np.int32]:
    return np.array(experts, np.int32)


class History:
    """onnx_moe_routing_history."""

    def __init__(self, window: int) -> None:
        self.handle = _HANDLE()
        _native.check(_library().onnx_moe_routing_history_create(window, ctypes.byref(self.handle)))
        weakref.finalize(self, _library().onnx_moe_routing_history_free, self.handle)

    def record(self, experts: Sequence[int]) -> None:
        """The newest call's experts."""
        ids = _ids(experts)
        _native.check(_library().onnx_moe_routing_history_record(self.handle, ids.ctypes.data, ids.size))

    def clear(self) -> None:
        """Forgets every call."""
        _native.check(_library().onnx_moe_routing_history_clear(self.handle))

    def __len__(self) -> int:
        return int(_library().onnx_moe_routing_history_size(self.handle))

    def last(self) -> list[int]:
        """Experts of the newest call."""
        out = Experts()
        _native.check(_library().onnx_moe_routing_history_last(self.handle, ctypes.byref(out)))
        return out.read()

    def frequencies(self, decay: float) -> dict[int, float]:
        """Σ decay^age of each expert."""
        out = Experts()
        _native.check(_library().onnx_moe_routing_history_frequencies(self.handle, decay, ctypes.byref(out)))
        return dict(zip(out.read(), [float(value) for value in out.values[: out.count]], strict=True))


@dataclass(frozen=True)
class Request:
    """What is to be predicted; weights as onnx_moe_prediction has them."""

    rule: int
    most: int
    decay: float
    min_confidence: float
    weights: NDArray[np.float64] | None = None


def predict(request: Request, history: History | None, current: Sequence[int]) -> list[int]:
    """The likeliest experts, best first."""
    ids, out = _ids(current), Experts()
    weights: Any = None if request.weights is None else np.ascontiguousarray(request.weights, np.float64)
    prediction = Prediction(
        request.rule,
        None if history is None else history.handle,
        ids.ctypes.data,
        ids.size,
        request.most,
        request.decay,
        request.min_confidence,
        None if weights is None else weights.ctypes.data,
    )
    _native.check(_library().onnx_moe_predict_experts(ctypes.byref(prediction), ctypes.byref(out)))
    return out.read()


class CrossLayerTable:
    """onnx_moe_cross_layer_table."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._handle = _HANDLE()
        create = _library().onnx_moe_cross_layer_table_create
        _native.check(create(num_layers, num_experts, ctypes.byref(self._handle)))
        weakref.finalize(self, _library().onnx_moe_cross_layer_table_free, self._handle)

    def routed(self, layer: int, experts: Sequence[int]) -> None:
        """A call of `layer` chose these distinct experts."""
        ids = _ids(experts)
        routed = _library().onnx_moe_cross_layer_table_routed
        _native.check(routed(self._handle, layer, ids.ctypes.data, ids.size))

    def predict(self, layer: int, most: int) -> list[int]:
        """The likeliest experts of the layer's next call."""
        out = Experts()
        predict_layer = _library().onnx_moe_cross_layer_table_predict
        _native.check(predict_layer(self._handle, layer, most, ctypes.byref(out)))
        return out.read()
