"""The part of the C API that moves rows to experts and back, by ctypes."""

from __future__ import annotations

import ctypes
from functools import cache

from onnx_moe import _native


class Gather(ctypes.Structure):
    """onnx_moe_gather."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("indices", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("out", ctypes.c_void_p),
    )


class Scatter(ctypes.Structure):
    """onnx_moe_scatter."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("y", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("positions", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("tokens", ctypes.c_int64),
        ("slots", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("out", ctypes.c_void_p),
    )


@cache
def _library() -> ctypes.CDLL:
    loaded = _native.library()
    _native.declare(
        loaded,
        {
            "onnx_moe_gather_rows": (ctypes.c_int, (ctypes.POINTER(Gather),)),
            "onnx_moe_scatter_rows": (ctypes.c_int, (ctypes.POINTER(Scatter),)),
        },
    )
    return loaded


def gather_rows(args: Gather) -> None:
    """onnx_moe_gather_rows; its arrays must be contiguous and live until it returns."""
    _native.check(_library().onnx_moe_gather_rows(ctypes.byref(args)))


def scatter_rows(args: Scatter) -> None:
    """onnx_moe_scatter_rows, likewise."""
    _native.check(_library().onnx_moe_scatter_rows(ctypes.byref(args)))
