"""Conformance cases on a simulated Metal device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import pytest
from conformance.cases import GEMM_CASES, GemmCase, RouterCase
from conformance.check import check_router, check_values
from conformance.data import GemmInputs, draw_gemm_inputs, draw_router_inputs
from conformance.oracle import expected_gemm
from conformance.test_gemm import allowed_frobenius

from metal.simulator import compilers, operators
from metal.simulator.device import SimulatedDevice
from metal.simulator.launch import Schedule
from metal.simulator.operators import Device

#: Kernels sum all of K in one chain, so that 14336 terms of one sign are right to 3e-6, not 1e-6 (docs/metal.md).
METAL_GEMM_CASES = [case for case in GEMM_CASES if case.weight_layout == "rows" and case.weights != "positive"]

SCHEDULES: tuple[Schedule, ...] = ("forward", "reverse", "random")
needs_compiler = pytest.mark.skipif(
    compilers.CXX is None, reason="the simulator compiles kernels with clang++ or g++, and there is neither"
)
needs_clang = pytest.mark.skipif(
    compilers.CLANG is None, reason="address spaces are checked and loads counted by clang (Debian: clang)"
)


def check_gemm_case(device: SimulatedDevice, case: GemmCase, regimes: Sequence[str]) -> None:
    """The case's products against float64 in each regime, as every implementation is held to them."""
    inputs = draw_gemm_inputs(case)
    expected = expected_gemm(case, inputs)
    attributes, tensors = gemm_arguments(case, inputs)
    for regime in regimes:
        y = operators.expert_gemm(device, attributes, tensors, regime=regime)
        bound = allowed_frobenius(case)
        check_values(y, expected, case.dtype, bound, flushes_subnormals=device.flush_subnormals)


def gemm_arguments(case: GemmCase, inputs: GemmInputs) -> tuple[operators.Projection, operators.ProjectionInputs]:
    """The case for the simulated kernels; the layout of weights is no attribute of theirs."""
    attributes = {name: value for name, value in case.attributes.items() if name != "weight_layout"}
    return operators.Projection(**attributes), operators.ProjectionInputs(**vars(inputs))


def check_router_case(device: Device, case: RouterCase) -> None:
    """The case's routing against float64."""
    inputs = draw_router_inputs(case)
    names = [field.name for field in fields(operators.RouterInputs)]  # the next layer's gate is the host's
    tensors = operators.RouterInputs(**{name: getattr(inputs, name) for name in names})
    attributes = operators.Router(**case.attributes)
    names = ("expert_ids", "expert_weights", "router_logits")
    outputs = dict(zip(names, operators.router(device, attributes, tensors), strict=True))
    check_router(case, inputs, outputs)
