"""MoEExpertGemmFP4: every implementation against float64."""

from __future__ import annotations

import functools

import pytest

from .cases import GEMM_CASES, GemmCase, case_id
from .check import check_values
from .data import GemmInputs, draw_gemm_inputs
from .implementations import IMPLEMENTATIONS, Implementation
from .oracle import Expected, expected_gemm


@functools.lru_cache(maxsize=1)
def prepared(case: GemmCase) -> tuple[GemmInputs, Expected]:
    inputs = draw_gemm_inputs(case)
    return inputs, expected_gemm(case, inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
@pytest.mark.parametrize("case", GEMM_CASES, ids=case_id, scope="module")
def test_gemm(case: GemmCase, implementation: Implementation) -> None:
    inputs, expected = prepared(case)
    check_values(implementation.gemm(case, inputs)["y"], expected, case.dtype)
