"""The native library through its C API (ops/include/onnx_moe.h), by ctypes: one wheel serves every Python."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import onnx_moe
from onnx_moe.errors import LibraryError, OnnxMoeError

LIBRARY_NAME = "libonnx_moe.dylib" if sys.platform == "darwin" else "libonnx_moe.so"


class Fp4Matrix(ctypes.Structure):
    """onnx_moe_fp4_matrix."""

    _fields_ = (
        ("format", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("global_scale", ctypes.c_float),
    )


class RouterArgs(ctypes.Structure):
    """onnx_moe_router_args."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("gate_type", ctypes.c_int32),
        ("tokens", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("num_experts", ctypes.c_int64),
        ("hidden_states", ctypes.c_void_p),
        ("gate_weight", ctypes.c_void_p),
        ("gate_bias", ctypes.c_void_p),
        ("correction_bias", ctypes.c_void_p),
        ("top_k", ctypes.c_int64),
        ("scoring", ctypes.c_char_p),
        ("normalize", ctypes.c_int32),
        ("norm_epsilon", ctypes.c_float),
        ("norm_min", ctypes.c_float),
        ("scaling_factor", ctypes.c_float),
        ("num_groups", ctypes.c_int64),
        ("top_k_groups", ctypes.c_int64),
        ("group_scoring", ctypes.c_char_p),
        ("num_shared_experts", ctypes.c_int64),
        ("expert_ids", ctypes.c_void_p),
        ("expert_weights", ctypes.c_void_p),
        ("router_logits", ctypes.c_void_p),
    )


class ExpertGemmArgs(ctypes.Structure):
    """onnx_moe_expert_gemm_args."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("bias_type", ctypes.c_int32),
        ("tokens", ctypes.c_int64),
        ("slots", ctypes.c_int64),
        ("num_experts", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("x_per_slot", ctypes.c_int32),
        ("x", ctypes.c_void_p),
        ("expert_ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("global_scale", ctypes.c_void_p),
        ("global_scales", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("expert_weights", ctypes.c_void_p),
        ("format", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("activation", ctypes.c_char_p),
        ("gated", ctypes.c_int32),
        ("interleaved", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("beta", ctypes.c_float),
        ("limit", ctypes.c_float),
        ("accuracy_level", ctypes.c_int32),
        ("weight_layout", ctypes.c_int32),
        ("y", ctypes.c_void_p),
    )


class CacheSetup(ctypes.Structure):
    """onnx_moe_cache_setup."""

    _fields_ = (
        ("num_layers", ctypes.c_int64),
        ("num_experts", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("layer_floor", ctypes.c_int64),
        ("share", ctypes.c_int64),
        ("policy", ctypes.c_int32),
        ("decay", ctypes.c_double),
        ("pinned", ctypes.c_void_p),
        ("num_pinned", ctypes.c_int64),
        ("preloaded", ctypes.c_void_p),
        ("num_preloaded", ctypes.c_int64),
    )


class RoutingTrace(ctypes.Structure):
    """onnx_moe_routing_trace."""

    _fields_ = (
        ("num_visits", ctypes.c_int64),
        ("layers", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("experts", ctypes.c_void_p),
    )


class SlotCounts(ctypes.Structure):
    """onnx_moe_slot_counts."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("least", "capacity", "layer_floor", "share", "staging"))


class CacheCounts(ctypes.Structure):
    """onnx_moe_cache_counts."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("hits", "misses", "evictions", "bypassed"))


class RecordedCalls(ctypes.Structure):
    """onnx_moe_recorded_calls."""

    _fields_ = (
        ("num_layers", ctypes.c_int64),
        ("num_calls", ctypes.c_int64),
        ("dropped_calls", ctypes.c_int64),
        ("layers", ctypes.c_void_p),
        ("phases", ctypes.c_void_p),
        ("requests", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("experts", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
    )


class RecordedLayer(ctypes.Structure):
    """onnx_moe_recorded_layer."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("num_experts", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("calls", ctypes.c_int64 * 2),
        ("tokens", ctypes.c_int64 * 2),
        ("counts", ctypes.c_void_p * 2),
        ("mass", ctypes.c_void_p * 2),
    )


#: onnx_moe_type, onnx_moe_weight_layout, onnx_moe_format and onnx_moe_scale_rule.
ELEMENT_TYPES = {"float": 1, "float16": 10, "bfloat16": 16}
WEIGHT_LAYOUTS = {"rows": 0, "interleaved": 1}
FORMAT_NUMBERS = {"mxfp4": 0, "nvfp4": 1, "fp4": 2}
SCALE_RULES = {"mse": 0, "even": 1, "ceil": 2, "floor": 3, "rceil": 4}
#: onnx_moe_cache_policy.
CACHE_POLICIES = {"lru": 0, "decayed-lfu": 1, "belady": 2}

_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "onnx_moe_version": (ctypes.c_char_p, ()),
    "onnx_moe_last_error": (ctypes.c_char_p, ()),
    "onnx_moe_kernel_name": (ctypes.c_char_p, (ctypes.c_int,)),
    "onnx_moe_use_kernel": (ctypes.c_int, (ctypes.c_char_p,)),
    "onnx_moe_current_kernel": (ctypes.c_char_p, ()),
    "onnx_moe_device": (ctypes.c_char_p, ()),
    "onnx_moe_quantize": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(Fp4Matrix)),
    ),
    "onnx_moe_quantize_weighted": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(Fp4Matrix)),
    ),
    "onnx_moe_choose_global_scale": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(Fp4Matrix)),
    ),
    "onnx_moe_dequantize": (ctypes.c_int, (ctypes.POINTER(Fp4Matrix), ctypes.c_void_p)),
    "onnx_moe_group_tokens": (
        ctypes.c_int,
        (
            ctypes.c_void_p,
            ctypes.c_int32,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ),
    ),
    "onnx_moe_recording_label": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32)),
    "onnx_moe_recording_default_phase": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_int32)),
    "onnx_moe_recording_clear": (ctypes.c_int, (ctypes.c_char_p,)),
    "onnx_moe_recording_take": (ctypes.c_int, (ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p))),
    "onnx_moe_recording_free": (None, (ctypes.c_void_p,)),
    "onnx_moe_recording_calls": (None, (ctypes.c_void_p, ctypes.POINTER(RecordedCalls))),
    "onnx_moe_recording_layer": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(RecordedLayer)),
    ),
    "onnx_moe_divide_slots": (
        ctypes.c_int,
        (
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int32,
            ctypes.POINTER(SlotCounts),
        ),
    ),
    "onnx_moe_simulate_cache": (
        ctypes.c_int,
        (
            ctypes.POINTER(CacheSetup),
            ctypes.POINTER(RoutingTrace),
            ctypes.POINTER(CacheCounts),
            ctypes.c_void_p,
            ctypes.c_void_p,
        ),
    ),
    "onnx_moe_residency": (ctypes.c_int, (ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p))),
    "onnx_moe_set_cache_bytes": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_char_p)),
    "onnx_moe_save_counters": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_char_p)),
    "onnx_moe_router": (ctypes.c_int, (ctypes.POINTER(RouterArgs),)),
    "onnx_moe_expert_gemm": (ctypes.c_int, (ctypes.POINTER(ExpertGemmArgs),)),
}


def library_path() -> Path:
    """Path of the plugin library: what `register_custom_ops_library` takes.

    Raises LibraryError when the package was not built with it.
    """
    # An editable install has two package folders: the sources and what was built from them.
    for folder in onnx_moe.__path__:
        path = Path(folder) / "lib" / LIBRARY_NAME
        if path.exists():
            return path
    raise LibraryError(
        f"{LIBRARY_NAME} is not in {' or '.join(onnx_moe.__path__)}: install the package (pip install .) "
        "rather than importing it from its source folder."
    )


@cache
def library() -> ctypes.CDLL:
    """The loaded library, its functions' signatures declared."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"{path} does not load: {error}. Reinstall onnx-moe on this machine.") from error
    declare(loaded, _SIGNATURES)
    return loaded


def declare(loaded: ctypes.CDLL, signatures: Mapping[str, tuple[object, tuple[object, ...]]]) -> None:
    """Declares functions of the library: name → (type of the result, types of the arguments)."""
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments


def check(status: int) -> None:
    """Raises OnnxMoeError with the library's sentence unless `status` is 0."""
    if status != 0:
        raise OnnxMoeError(library().onnx_moe_last_error().decode())


def version() -> str:
    """Version of the native library."""
    return str(library().onnx_moe_version().decode())


def kernel_names() -> list[str]:
    """Kernels that this machine can run, best first."""
    names: list[str] = []
    while (name := library().onnx_moe_kernel_name(len(names))) is not None:
        names.append(name.decode())
    return names


def current_kernel() -> str:
    """The kernel in use; OnnxMoeError when ONNX_MOE_KERNEL names one that this machine lacks."""
    name = library().onnx_moe_current_kernel()
    if name is None:
        raise OnnxMoeError(library().onnx_moe_last_error().decode())
    return str(name.decode())


def device() -> str:
    """The GPU that onnx_moe.device = metal would use; OnnxMoeError with the reason when there is none."""
    name = library().onnx_moe_device()
    if name is None:
        raise OnnxMoeError(library().onnx_moe_last_error().decode())
    return str(name.decode())


def select_kernel(name: str) -> None:
    """Makes the process use kernel `name`, or the best one for "auto"."""
    check(library().onnx_moe_use_kernel(name.encode()))


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Uses kernel `name` inside the block, in the whole process."""
    before = current_kernel()
    select_kernel(name)
    try:
        yield
    finally:
        select_kernel(before)
