"""MoERouter: every implementation against float64."""

from __future__ import annotations

import functools

import pytest

from .cases import ROUTER_CASES, RouterCase, case_id
from .check import check_router
from .data import RouterInputs, draw_router_inputs
from .implementations import IMPLEMENTATIONS, Implementation

prepared = functools.lru_cache(maxsize=1)(draw_router_inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
@pytest.mark.parametrize("case", ROUTER_CASES, ids=case_id, scope="module")
def test_router(case: RouterCase, implementation: Implementation) -> None:
    inputs: RouterInputs = prepared(case)
    check_router(case, inputs, implementation.router(case, inputs))
