"""The library on the processor at hand: python -m native.older_processor prints the kernel that it chooses and the
largest relative error of that kernel's products, against the portable one's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_moe import _native

from .guarded import Case, gemm


def main() -> None:
    kernel = _native.current_kernel()
    base = Case("mxfp4", 32, "float", 9, 32, 288, True, False, False, False)
    cases = [
        replace(base, format=format, block=block, layout=layout)
        for format, block in (("mxfp4", 32), ("nvfp4", 16), ("fp4", 32))
        for layout in ("rows", "interleaved")
    ]
    errors = []
    for case in cases:
        products = []
        for name in (kernel, "reference"):
            with _native.use_kernel(name):
                products.append(np.frombuffer(gemm(case, None), np.float32).astype(np.float64))
        errors.append(np.linalg.norm(products[0] - products[1]) / np.linalg.norm(products[1]))
    print(kernel, max(errors))


if __name__ == "__main__":
    main()
