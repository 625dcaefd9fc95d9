"""Every kernel of this machine decodes every code and every scale to the value that ml_dtypes and numpy give it."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_moe import _native

from .decoding import BLOCKS, ROW_BLOCKS, ROWS_OF_X, Product, products


def multiply(product: Product, layout: str) -> NDArray[np.float32]:
    """y of the rows that `product.expected` has."""
    if layout == "interleaved":
        product = product.interleaved()
    weights, ids = product.weights, np.zeros(len(product.x), np.int32)
    y = np.full((len(product.x), len(product.codes)), 12345, np.float32)
    arguments = _native.ExpertGemmArgs(
        type=_native.ELEMENT_TYPES["float"],
        tokens=len(product.x),
        slots=1,
        num_experts=1,
        rows=len(product.codes),
        columns=product.x.shape[1],
        x=product.x.ctypes.data,
        expert_ids=ids.ctypes.data,
        weights=weights.ctypes.data,
        scales=product.scales.ctypes.data,
        format=_native.FORMAT_NUMBERS[product.format],
        block_size=BLOCKS[product.format],
        activation=b"none",
        alpha=1.0,
        weight_layout=_native.WEIGHT_LAYOUTS[layout],
        y=y.ctypes.data,
    )
    _native.check(_native.library().onnx_moe_expert_gemm(ctypes.byref(arguments)))
    return y[:, : product.expected.shape[1]]


@pytest.mark.parametrize("kernel", _native.kernel_names())
@pytest.mark.parametrize("format", BLOCKS)
@pytest.mark.parametrize("row_blocks", ROW_BLOCKS)
@pytest.mark.parametrize("rows_of_x", ROWS_OF_X)
@pytest.mark.parametrize("layout", _native.WEIGHT_LAYOUTS)
def test_every_scale_and_code(kernel: str, format: str, row_blocks: int, rows_of_x: int, layout: str) -> None:
    with _native.use_kernel(kernel):
        for product in products(format, row_blocks, rows_of_x):
            np.testing.assert_array_equal(multiply(product, layout), product.expected)
