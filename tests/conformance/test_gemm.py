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
    """Of the contract. Level 4's is that of usual activations, before a function that may multiply the error."""
    of_type = FROBENIUS[case.dtype]
    if case.accuracy_level < 4:
        return max(of_type, LEVEL_FROBENIUS[case.accuracy_level])
    usual = case.weights == "random" and not case.gated and case.activation == "none"
    return LEVEL_FROBENIUS[4] if usual else 1.0  # then each element is held to its bound only


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
@pytest.mark.parametrize("case", GEMM_CASES, ids=case_id, scope="module")
def test_gemm(case: GemmCase, implementation: Implementation) -> None:
    inputs, expected = prepared(case)
    check_values(implementation.gemm(case, inputs)["y"], expected, case.dtype, allowed_frobenius(case))
