"""What holds for the plugin's kernels whatever the values are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_moe import _native

from .cases import GemmCase, RouterCase
from .check import FROBENIUS
from .data import Array, GemmInputs, draw_gemm_inputs, draw_router_inputs
from .implementations import PluginKernel

KERNELS = _native.kernel_names()

GEMM = GemmCase(
    slots=4, num_experts=5, rows=70, blocks=5, gated=True, activation="silu", combine=True, bias="float", tokens=(150,)
)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tokens", [1, 3, 150])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_do_not_matter(kernel: str, tokens: int, dtype: str) -> None:
    case = replace(GEMM, tokens=(tokens,), dtype=dtype)
    inputs = draw_gemm_inputs(case)
    one, *others = (PluginKernel(kernel, threads).gemm(case, inputs)["y"].tobytes() for threads in (1, 2, 5))
    assert others == [one, one]


def take(inputs: GemmInputs, rows: Sequence[int] | Array) -> GemmInputs:
    assert inputs.expert_weights is not None
    return replace(
        inputs,
        x=inputs.x[rows],
        expert_ids=inputs.expert_ids[rows],
        expert_weights=inputs.expert_weights[rows],
    )


@pytest.mark.parametrize("kernel", KERNELS)
@given(data=st.data())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_order_of_tokens_does_not_matter(kernel: str, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 150), label="tokens")
    order = np.array(data.draw(st.permutations(range(tokens)), label="order"))
    case = replace(GEMM, tokens=(tokens,))
    inputs = draw_gemm_inputs(case)
    implementation = PluginKernel(kernel)
    y = implementation.gemm(case, inputs)["y"]
    permuted = implementation.gemm(case, take(inputs, order))["y"]
    # Not to the last bit: whether a token is multiplied alone or among others of its expert depends on its place.
    assert np.linalg.norm(permuted - y[order]) <= 2 * FROBENIUS["float32"] * np.linalg.norm(y)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid_after_topk"])
def test_rows_of_a_router_do_not_see_each_other(kernel: str, scoring: str) -> None:
    case = RouterCase(tokens=(70,), num_experts=37, hidden_size=129, top_k=5, scoring=scoring, correction_bias=True)
    inputs = draw_router_inputs(case)
    together = PluginKernel(kernel).router(case, inputs)
    for row in (0, 13, 69):
        one = replace(inputs, hidden_states=inputs.hidden_states[row : row + 1])
        alone = PluginKernel(kernel).router(replace(case, tokens=(1,)), one)
        assert {name: array.tobytes() for name, array in alone.items()} == {
            name: array[row : row + 1].tobytes() for name, array in together.items()
        }
