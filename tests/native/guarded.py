"""Runs both operators' arithmetic on buffers that touch unreadable pages: python -m native.guarded KERNEL.

A read or write beside a buffer kills the process. Every case runs three times, in ordinary memory, with each buffer
ending where an unreadable page begins, and with each beginning where one ends; outputs must be the same bytes.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe import _native

Array = NDArray[Any]

PAGE = mmap.PAGESIZE
POISON = 0xA5
TYPES = {"float": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class Guarded:
    """Copies of arrays beside unreadable pages: "after" them, "before" them, or nowhere (None)."""

    def __init__(self, side: str | None) -> None:
        self._side = side
        self._maps: list[mmap.mmap] = []
        self._libc = ctypes.CDLL(None, use_errno=True)

    def place(self, array: Array) -> Array:
        if self._side is None:
            return array.copy()
        pages = -(-array.nbytes // PAGE) + 2
        memory = mmap.mmap(-1, pages * PAGE)
        self._maps.append(memory)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (0, pages - 1):
            assert self._libc.mprotect(ctypes.c_void_p(base + page * PAGE), PAGE, 0) == 0
        start = PAGE if self._side == "before" else (pages - 1) * PAGE - array.nbytes
        target: Array = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
        target[...] = array
        return target


@dataclass(frozen=True)
class Case:
    format: str
    block: int
    dtype: str
    tokens: int
    rows: int
    columns: int
    gated: bool
    interleaved: bool
    combine: bool
    per_slot: bool

    slots: int = 2
    experts: int = 3
    level: int = 0
    layout: str = "rows"


def random_floats(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    values = random.standard_normal(shape).astype(np.float32)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(TYPES[dtype])


def gemm_arrays(case: Case) -> dict[str, Array]:
    """Every buffer of a product, the output poisoned."""
    random = np.random.default_rng(0)
    blocks = case.columns // case.block
    scales = random.integers(40, 60, (case.experts, case.rows, blocks)).astype(np.uint8)
    scale_array = np.abs(random_floats(random, scales.shape, "float16")) if case.format == "fp4" else scales
    x_shape = (case.tokens, *([case.slots] if case.per_slot else []), case.columns)
    outputs = case.rows // 2 if case.gated else case.rows
    y_shape = (case.tokens, *([] if case.combine else [case.slots]), outputs)
    weights = random.integers(0, 256, (case.experts, case.rows, case.columns // 2))
    return {
        "x": random_floats(random, x_shape, case.dtype),
        "expert_ids": random.integers(0, case.experts, (case.tokens, case.slots)).astype(np.int32),
        "weights": weights.astype(np.uint8),
        "scales": scale_array,
        "global_scale": random.random((case.experts, 2 if case.gated else 1)).astype(np.float32),
        "bias": random_floats(random, (case.experts, case.rows), case.dtype),
        "expert_weights": random.random((case.tokens, case.slots)).astype(np.float32),
        "y": np.full(y_shape, POISON, np.uint8).astype(TYPES[case.dtype]),
    }


def gemm(case: Case, side: str | None) -> bytes:
    guarded = Guarded(side)
    placed = {name: guarded.place(array) for name, array in gemm_arrays(case).items()}
    pointers = {name: array.ctypes.data for name, array in placed.items()}
    if not case.combine:
        pointers["expert_weights"] = 0
    arguments = _native.ExpertGemmArgs(
        type=_native.ELEMENT_TYPES[case.dtype],
        bias_type=_native.ELEMENT_TYPES[case.dtype],
        tokens=case.tokens,
        slots=case.slots,
        num_experts=case.experts,
        rows=case.rows,
        columns=case.columns,
        x_per_slot=case.per_slot,
        global_scales=2 if case.gated else 1,
        format=_native.FORMAT_NUMBERS[case.format],
        block_size=case.block,
        activation=b"silu" if case.gated else b"gelu_tanh",
        gated=case.gated,
        interleaved=case.interleaved,
        alpha=1.0,
        accuracy_level=case.level,
        weight_layout=_native.WEIGHT_LAYOUTS[case.layout],
        **pointers,
    )
    _native.check(_native.library().onnx_moe_expert_gemm(ctypes.byref(arguments)))
    return placed["y"].tobytes()


def router(dtype: str, tokens: int, hidden_size: int, experts: int, gate: bool, side: str | None) -> bytes:
    guarded = Guarded(side)
    random = np.random.default_rng(1)
    top_k = min(4, experts)
    arrays = {
        "hidden_states": random_floats(random, (tokens, hidden_size if gate else experts), dtype),
        "gate_weight": random_floats(random, (experts, hidden_size), dtype),
        "gate_bias": random_floats(random, (experts,), dtype),
        "correction_bias": random_floats(random, (experts,), "float"),
        "expert_ids": np.full((tokens, top_k), -1, np.int32),
        "expert_weights": np.full((tokens, top_k), POISON, np.float32),
        "router_logits": np.full((tokens, experts), POISON, np.float32),
    }
    placed = {name: guarded.place(array) for name, array in arrays.items()}
    pointers = {name: array.ctypes.data for name, array in placed.items()}
    if not gate:
        pointers["gate_weight"] = 0
    arguments = _native.RouterArgs(
        type=_native.ELEMENT_TYPES[dtype],
        gate_type=_native.ELEMENT_TYPES[dtype],
        tokens=tokens,
        hidden_size=hidden_size,
        num_experts=experts,
        top_k=top_k,
        scoring=b"sigmoid",
        normalize=1,
        scaling_factor=1.0,
        num_groups=1,
        top_k_groups=1,
        group_scoring=b"max",
        **pointers,
    )
    _native.check(_native.library().onnx_moe_router(ctypes.byref(arguments)))
    return b"".join(placed[name].tobytes() for name in ("expert_ids", "expert_weights", "router_logits"))


def gemm_cases() -> list[Case]:
    base = Case("mxfp4", 32, "float", 3, 34, 96, False, False, False, False)
    formats = (("mxfp4", 32), ("nvfp4", 16), ("fp4", 32), ("fp4", 128))
    cases = [
        replace(base, format=format, block=block, tokens=tokens, columns=multiple * block, rows=rows, dtype=dtype)
        for (format, block), tokens, multiple, (rows, dtype) in itertools.product(
            formats, (1, 2, 3, 7, 65), (1, 3, 9), ((33, "float"), (37, "float16"), (5, "bfloat16"))
        )
    ]
    for format, interleaved, combine, per_slot in itertools.product(formats, *[(False, True)] * 3):
        name, block = format
        cases.append(
            replace(
                base,
                format=name,
                block=block,
                columns=5 * block,
                gated=True,
                interleaved=interleaved,
                combine=combine,
                per_slot=per_slot,
            )
        )
    cases += [
        replace(case, rows=rows, layout="interleaved")
        for case in cases
        if not case.interleaved
        for rows in ((32, 96) if case.gated else (16, 80))
    ]
    return [*cases, *(replace(case, level=level) for level in (2, 4) for case in cases)]


def main() -> None:
    _native.select_kernel(sys.argv[1])
    count = 0
    for case in gemm_cases():
        expected = gemm(case, None)
        for side in ("after", "before"):
            assert gemm(case, side) == expected, (case, side)
        count += 1
    for setting in itertools.product(TYPES, (1, 2, 65), (1, 31, 1030), (4, 17), (True, False)):
        expected = router(*setting, None)
        for side in ("after", "before"):
            assert router(*setting, side) == expected, (setting, side)
        count += 1
    print(f"{count} cases")


if __name__ == "__main__":
    main()
