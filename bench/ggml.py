"""ggml, llama.cpp's library, as a peer: a block of MXFP4 experts, rearranged for the CPU as llama.cpp does it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.compiling import compile_library
from bench.implementations import Implementation, Unsupported
from bench.shapes import Call, Shape

#: Bits of an MXFP4 weight with its share of the block's scale.
_BITS = 4.25
_BLOCK = 32


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    """bench/ggml.cpp against the ggml that is installed in `path`."""
    if not (path / "include" / "ggml.h").exists():
        raise SystemExit(f"--ggml {path} holds no include/ggml.h: give the folder that ggml was installed in.")
    flags = [f"-I{path / 'include'}", f"-L{path / 'lib'}", f"-Wl,-rpath,{path / 'lib'}"]
    library = compile_library("ggml.cpp", [*flags, "-lggml", "-lggml-cpu", "-lggml-base"])
    library.bench_ggml_make.restype = ctypes.c_void_p
    library.bench_ggml_make.argtypes = (*[ctypes.c_int64] * 4, ctypes.c_int)
    library.bench_ggml_run.argtypes = (ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 4)
    return library


def ggml(shape: Shape, path: Path, threads: int) -> Implementation:
    """gate, up and down by ggml_mul_mat_id, whose activations are int8 in blocks of 32, as at accuracy_level 4."""
    if shape.hidden_size % _BLOCK or shape.intermediate_size % _BLOCK:
        raise Unsupported(f"{shape.hidden_size} × {shape.intermediate_size} is no multiple of ggml's blocks")
    library = _library(path)
    sizes = (shape.num_experts, shape.top_k, shape.hidden_size, shape.intermediate_size)
    block = library.bench_ggml_make(*sizes, threads)

    def feed(call: Call) -> tuple[NDArray[Any], ...]:
        weights = np.full(call.expert_ids.shape, 1 / shape.top_k, np.float32)
        return call.x, call.expert_ids, weights, np.empty_like(call.x)

    def run(arrays: tuple[NDArray[Any], ...]) -> object:
        library.bench_ggml_run(block, len(arrays[0]), *(array.ctypes.data for array in arrays))
        return arrays[-1]

    return Implementation("ggml mxfp4", feed, run, shape.weights_per_expert * _BITS / 8)
