"""The Metal kernels on the simulator: values, order of execution, races, address spaces, bytes moved."""

from __future__ import annotations

import numpy as np
import pytest
from conformance.cases import GEMM_CASES, ROUTER_CASES, GemmCase, RouterCase, case_id
from conformance.data import draw_gemm_inputs

from metal.simulator import operators, runner
from metal.simulator.device import KERNELS, SimulatedDevice

from .simulation import check_gemm_case, check_router_case, needs_clang, needs_compiler

pytestmark = needs_compiler

#: A share of the conformance cases that takes the simulator under a minute: each compiles a kernel of its own. They are
#: spread evenly over a list in which every pair of settings occurs; a case of many tokens only takes longer.
SIMULATED_GEMM_CASES = [
    c for c in GEMM_CASES if c.weight_layout == "rows" and np.prod(c.tokens) * c.slots * c.rows * c.columns < 1e7
][::9]
SIMULATED_ROUTER_CASES = [c for c in ROUTER_CASES if c.top_k <= 32 and np.prod(c.tokens) < 100][::5]
SCHEDULES = ("forward", "reverse", "random")

RACED_GEMM = GemmCase(tokens=(20,), rows=68, blocks=2, gated=True, activation="silu", num_experts=3, combine=True)
RACED_ROUTER = RouterCase(
    num_experts=64,
    top_k=5,
    num_groups=8,
    top_k_groups=3,
    group_scoring="top2_sum",
    scoring="softmax_after_topk",
    normalize=True,
)


@pytest.mark.parametrize("grouped", [False, True], ids=["decode", "grouped"])
@pytest.mark.parametrize("case", SIMULATED_GEMM_CASES, ids=case_id)
def test_gemm(case: GemmCase, grouped: bool) -> None:
    schedule = SCHEDULES[SIMULATED_GEMM_CASES.index(case) % 3]
    check_gemm_case(SimulatedDevice(schedule), case, grouped=grouped)


@pytest.mark.parametrize("case", SIMULATED_ROUTER_CASES, ids=case_id)
def test_router(case: RouterCase) -> None:
    check_router_case(SimulatedDevice(SCHEDULES[SIMULATED_ROUTER_CASES.index(case) % 3]), case)


@pytest.mark.parametrize("experts", [1, 33, 256, 1024])
def test_grouping_is_a_stable_sort(experts: int) -> None:
    ids = np.random.default_rng(experts).integers(0, experts, (71, 3), np.int32)
    groups = operators.group(SimulatedDevice("random"), ids, experts)
    flat = ids.reshape(-1)
    counts = np.bincount(flat, minlength=experts)
    np.testing.assert_array_equal(groups.grouped, np.argsort(flat, kind="stable"))
    np.testing.assert_array_equal(groups.offsets, np.cumsum(counts) - counts)
    tiles = groups.tiles[: groups.tile_count[0]]
    covered = [(int(e), int(first) + i) for e, first, count in tiles for i in range(count)]
    assert covered == [(int(flat[groups.grouped[i]]), i) for i in range(flat.size)]


@pytest.mark.parametrize("grouped", [False, True], ids=["decode", "grouped"])
def test_every_schedule_gives_the_same_bytes(grouped: bool) -> None:
    case = GemmCase(tokens=(40,), rows=70, blocks=3, gated=True, activation="silu", num_experts=3, combine=True)
    inputs = operators.ProjectionInputs(**vars(draw_gemm_inputs(case)))
    attributes = operators.Projection(**case.attributes)
    results = {
        schedule: operators.expert_gemm(SimulatedDevice(schedule), attributes, inputs, grouped=grouped).tobytes()
        for schedule in SCHEDULES
    }
    assert len(set(results.values())) == 1


def test_no_data_races() -> None:
    device = SimulatedDevice(race_check=True)
    for grouped in (False, True):
        check_gemm_case(device, RACED_GEMM, grouped=grouped)
    check_router_case(device, RACED_ROUTER)


@needs_clang
@pytest.mark.parametrize("element", ["float", "half", "bfloat"])
@pytest.mark.parametrize("file", sorted(path.stem for path in KERNELS.glob("*.metal")))
def test_address_spaces(file: str, element: str) -> None:
    assert runner.check(str(KERNELS / f"{file}.metal"), [str(KERNELS)], {"ELEMENT": element}) == []
