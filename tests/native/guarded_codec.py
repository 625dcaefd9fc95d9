"""Quantises, decodes and groups on buffers that touch unreadable pages: python -m native.guarded_codec KERNEL.

As native.guarded does for the operators' arithmetic. The kernel matters because it widens the weights.
"""

from __future__ import annotations

import ctypes
import itertools
import sys

import numpy as np

from onnx_moe import _native

from .guarded import POISON, TYPES, Guarded, random_floats

FORMATS = (("mxfp4", 32), ("nvfp4", 16), ("fp4", 32), ("fp4", 128))


def codec(format: str, block: int, dtype: str, rule: str, rows: int, blocks: int, side: str | None) -> bytes:
    """Codes, scales and decoded weights."""
    guarded = Guarded(side)
    columns = blocks * block
    weights = guarded.place(random_floats(np.random.default_rng(0), (rows, columns), dtype))
    codes = guarded.place(np.full((rows, columns // 2), POISON, np.uint8))
    scales = guarded.place(np.full((rows, blocks), POISON, np.uint16 if format == "fp4" else np.uint8))
    decoded = guarded.place(np.full((rows, columns), POISON, np.float32))
    matrix = _native.Fp4Matrix(
        format=_native.FORMAT_NUMBERS[format],
        block_size=block,
        rows=rows,
        columns=columns,
        codes=codes.ctypes.data,
        scales=scales.ctypes.data,
        global_scale=0.5,
    )
    library = _native.library()
    types, rules = _native.ELEMENT_TYPES, _native.SCALE_RULES
    if rule == "weighted":
        importance = guarded.place(random_floats(np.random.default_rng(1), (columns,), "float") ** 2)
        arguments = (weights.ctypes.data, types[dtype], importance.ctypes.data, ctypes.byref(matrix))
        _native.check(library.onnx_moe_quantize_weighted(*arguments))
        global_scale = (*arguments[:2], rules["mse"], *arguments[2:])
        _native.check(library.onnx_moe_choose_global_scale(*global_scale))
    else:
        _native.check(library.onnx_moe_quantize(weights.ctypes.data, types[dtype], rules[rule], ctypes.byref(matrix)))
    _native.check(library.onnx_moe_dequantize(ctypes.byref(matrix), decoded.ctypes.data))
    return codes.tobytes() + scales.tobytes() + decoded.tobytes()


def grouping(assignments: int, num_experts: int, with_inverse: bool, side: str | None) -> bytes:
    """Order, offsets and inverse."""
    guarded = Guarded(side)
    ids = guarded.place(np.random.default_rng(0).integers(0, num_experts, assignments).astype(np.int32))
    order, inverse = (guarded.place(np.full(assignments, -1, np.int64)) for _ in range(2))
    offsets = guarded.place(np.full(num_experts + 1, -1, np.int64))
    pointers = (order.ctypes.data, offsets.ctypes.data, inverse.ctypes.data if with_inverse else None)
    library = _native.library()
    _native.check(library.onnx_moe_group_tokens(ids.ctypes.data, 4, assignments, 1, num_experts, *pointers))
    return order.tobytes() + offsets.tobytes() + inverse.tobytes()


def main() -> None:
    _native.select_kernel(sys.argv[1])
    count = 0
    for (format, block), dtype, rule, rows, blocks in itertools.product(
        FORMATS, TYPES, ("mse", "ceil", "weighted"), (1, 5), (1, 3)
    ):
        expected = codec(format, block, dtype, rule, rows, blocks, None)
        for side in ("after", "before"):
            assert codec(format, block, dtype, rule, rows, blocks, side) == expected, (format, dtype, rule, side)
        count += 1
    for setting in itertools.product((1, 2, 7, 513), (1, 3, 256), (False, True)):
        expected = grouping(*setting, None)
        for side in ("after", "before"):
            assert grouping(*setting, side) == expected, (setting, side)
        count += 1
    print(f"{count} cases")


if __name__ == "__main__":
    main()
