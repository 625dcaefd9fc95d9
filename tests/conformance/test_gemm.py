"""MoEExpertGemmFP4: every implementation against float64."""

from __future__ import annotations

import functools

import pytest

from .cases import GEMM_CASES, GemmCase, case_id
from .check import FROBENIUS, LEVEL_FROBENIUS, check_values
from .data import GemmInputs, draw_gemm_inputs
from .implementations import IMPLEMENTATIONS, Implementation
from .oracle import Expected, expected_gemm


@functools.lru_cache(maxsize=1)
def prepared(case: GemmCase) -> tuple[GemmInputs, Expected]:
    inputs = draw_gemm_inputs(case)
    return inputs, expected_gemm(case, inputs)


def allowed_frobenius(case: GemmCase) -> float:
    """Of the contract. Level 4's is that of usual activations: a product of two of them, or a function whose slope is
    above one, has up to three times as much. With a spike in each block, or one output column, whose few sums
    may all be near zero, elements are held to their bounds only.
    """
    level = LEVEL_FROBENIUS[case.accuracy_level]
    if case.accuracy_level == 4 and (case.weights == "x_spiky" or case.output_rows == 1):
        return 1.0
    plain = not case.gated and case.activation == "none"
    return max(FROBENIUS[case.dtype], level if plain else 3 * level)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
@pytest.mark.parametrize("case", GEMM_CASES, ids=case_id, scope="module")
def test_gemm(case: GemmCase, implementation: Implementation) -> None:
    inputs, expected = prepared(case)
    check_values(implementation.gemm(case, inputs)["y"], expected, case.dtype, allowed_frobenius(case))
