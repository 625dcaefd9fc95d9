"""The part of the C API that keeps the order of cached objects, by ctypes."""

from __future__ import annotations

import ctypes
import weakref
from functools import cache

import numpy as np
from numpy.typing import NDArray

from onnx_moe import _native


class Objects(ctypes.Structure):
    """onnx_moe_objects."""

    _fields_ = (("count", ctypes.c_int64), ("numbers", ctypes.POINTER(ctypes.c_int64)))

    def read(self) -> list[int]:
        """A copy of the numbers."""
        return [int(number) for number in self.numbers[: self.count]]


_HANDLE = ctypes.c_void_p
_I64 = ctypes.c_int64
_OBJECTS = ctypes.POINTER(Objects)
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "onnx_moe_object_cache_create": (
        ctypes.c_int,
        (_I64, _I64, _I64, ctypes.c_int32, ctypes.c_double, ctypes.POINTER(_HANDLE)),
    ),
    "onnx_moe_object_cache_free": (None, (_HANDLE,)),
    "onnx_moe_object_cache_visit": (ctypes.c_int, (_HANDLE, _I64, _HANDLE, _I64)),
    "onnx_moe_object_cache_insert": (
        ctypes.c_int,
        (_HANDLE, _I64, _I64, _I64, ctypes.POINTER(_I64), _OBJECTS),
    ),
    "onnx_moe_object_cache_use": (ctypes.c_int, (_HANDLE, _I64)),
    "onnx_moe_object_cache_lease": (ctypes.c_int, (_HANDLE, _I64)),
    "onnx_moe_object_cache_release": (ctypes.c_int, (_HANDLE, _I64)),
    "onnx_moe_object_cache_erase": (ctypes.c_int, (_HANDLE, _I64)),
    "onnx_moe_object_cache_resize": (ctypes.c_int, (_HANDLE, _I64, _OBJECTS)),
    "onnx_moe_object_cache_bytes": (_I64, (_HANDLE,)),
}


@cache
def _library() -> ctypes.CDLL:
    loaded = _native.library()
    _native.declare(loaded, _SIGNATURES)
    return loaded


class ObjectOrder:
    """Sizes, leases and order of leaving of cached objects, by their numbers: onnx_moe_object_cache_…."""

    def __init__(self, num_layers: int, num_experts: int, budget_bytes: int, policy: str, decay: float) -> None:
        self._handle = _HANDLE()
        number = _native.CACHE_POLICIES[policy]
        create = _library().onnx_moe_object_cache_create
        _native.check(create(num_layers, num_experts, budget_bytes, number, decay, ctypes.byref(self._handle)))
        weakref.finalize(self, _library().onnx_moe_object_cache_free, self._handle)

    def visit(self, layer: int, experts: NDArray[np.int64]) -> None:
        """A call of `layer` chose experts [n], in range."""
        ids = experts.astype(np.int32)
        _native.check(_library().onnx_moe_object_cache_visit(self._handle, layer, ids.ctypes.data, ids.size))

    def insert(self, layer: int, expert: int, nbytes: int) -> tuple[int | None, list[int]]:
        """The new object's number, None where it has no room; and those that left for it."""
        number, evicted = _I64(), Objects()
        insert = _library().onnx_moe_object_cache_insert
        _native.check(insert(self._handle, layer, expert, nbytes, ctypes.byref(number), ctypes.byref(evicted)))
        return None if number.value < 0 else number.value, evicted.read()

    def use(self, number: int) -> None:
        """The object is the most recently used one now."""
        _native.check(_library().onnx_moe_object_cache_use(self._handle, number))

    def lease(self, number: int) -> None:
        """The object stays until it is released."""
        _native.check(_library().onnx_moe_object_cache_lease(self._handle, number))

    def release(self, number: int) -> None:
        """Ends one lease."""
        _native.check(_library().onnx_moe_object_cache_release(self._handle, number))

    def erase(self, number: int) -> None:
        """Takes the object out; it must not be leased."""
        _native.check(_library().onnx_moe_object_cache_erase(self._handle, number))

    def resize(self, budget_bytes: int) -> list[int]:
        """Another budget; the numbers of those that left."""
        evicted = Objects()
        resize = _library().onnx_moe_object_cache_resize
        _native.check(resize(self._handle, budget_bytes, ctypes.byref(evicted)))
        return evicted.read()

    @property
    def nbytes(self) -> int:
        """Bytes of all objects."""
        return int(_library().onnx_moe_object_cache_bytes(self._handle))
