"""The Metal kernels on the simulator: values, order of execution, races, address spaces, bytes moved."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from conformance.cases import ROUTER_CASES, GemmCase, RouterCase, case_id
from conformance.data import draw_gemm_inputs

from metal.simulator import address_spaces, operators
from metal.simulator.device import KERNELS, SimulatedDevice, count_loads
from metal.simulator.operators import REGIMES, projection_call
from tools.metal_on_cuda.models import SMALL, draw_activations, draw_block

from .simulation import (
    METAL_GEMM_CASES,
    SCHEDULES,
    check_gemm_case,
    check_router_case,
    gemm_arguments,
    needs_clang,
    needs_compiler,
)

pytestmark = needs_compiler

#: Every third case of those that are small; test_session.py runs all, in the regime that the planner chooses.
SIMULATED_GEMM_CASES = [c for c in METAL_GEMM_CASES if np.prod(c.tokens) * c.slots * c.rows * c.columns < 2e6][::3]
SPECIAL_GEMM_CASES = [c for c in METAL_GEMM_CASES if c.weights != "random" and c.accuracy_level == 0]
SIMULATED_ROUTER_CASES = [c for c in ROUTER_CASES if c.top_k <= 32 and np.prod(c.tokens) < 100][::3]

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

BLOCK_OF_GROUPS = ["router", "plan_tiles", "scatter_assignments", "expert_few", "expert_few", "combine"]


@pytest.mark.parametrize("case", SIMULATED_GEMM_CASES, ids=case_id)
def test_gemm(case: GemmCase) -> None:
    schedule = SCHEDULES[SIMULATED_GEMM_CASES.index(case) % 3]
    check_gemm_case(SimulatedDevice(schedule), case, REGIMES)


@pytest.mark.parametrize("case", SIMULATED_ROUTER_CASES, ids=case_id)
def test_router(case: RouterCase) -> None:
    check_router_case(SimulatedDevice(SCHEDULES[SIMULATED_ROUTER_CASES.index(case) % 3]), case)


@pytest.mark.parametrize("case", SPECIAL_GEMM_CASES, ids=case_id)
def test_special_values_where_subnormals_are_flushed(case: GemmCase) -> None:
    """Apple GPUs may take float subnormals for zeros: scales of 2^-127 and NaN must not depend on them."""
    check_gemm_case(SimulatedDevice(flush_subnormals=True), case, REGIMES)


def test_more_slots_than_one_dispatch_combines() -> None:
    case = GemmCase(tokens=(2,), slots=70, rows=5, blocks=1, combine=True)
    attributes, tensors = gemm_arguments(case, draw_gemm_inputs(case))
    plan = projection_call(attributes, tensors, np.zeros((2, 5), np.float32), "decode").plan()
    assert [launch.kernel for launch in plan.launches] == ["expert_decode", "combine"]
    check_gemm_case(SimulatedDevice(), case, ["decode"])


def test_specialised_kernels_give_the_same_bytes() -> None:
    """Metal compiles function constants in; the other tests read them from variables."""
    case = GemmCase(tokens=(20,), rows=70, blocks=3, gated=True, activation="silu", num_experts=3, combine=True)
    attributes, tensors = gemm_arguments(case, draw_gemm_inputs(case))
    for regime in REGIMES:
        results = [
            operators.expert_gemm(SimulatedDevice(specialised=specialised), attributes, tensors, regime=regime)
            for specialised in (False, True)
        ]
        assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("tile_rows", [8, 32])
@pytest.mark.parametrize("experts", [1, 33, 256, 1024])
def test_grouping_is_a_stable_sort(experts: int, tile_rows: int) -> None:
    ids = np.random.default_rng(experts).integers(0, experts, (71, 3), np.int32)
    groups = operators.group(SimulatedDevice("random"), ids, experts, tile_rows)
    flat = ids.reshape(-1)
    counts = np.bincount(flat, minlength=experts)
    np.testing.assert_array_equal(groups.grouped, np.argsort(flat, kind="stable"))
    np.testing.assert_array_equal(groups.offsets, np.cumsum(counts) - counts)
    tiles = groups.tiles[: groups.tile_count]
    assert tiles[:, 2].max() <= tile_rows
    covered = [(int(e), int(first) + i) for e, first, count in tiles for i in range(count)]
    assert covered == [(int(flat[groups.grouped[i]]), i) for i in range(flat.size)]


@dataclass(frozen=True)
class OneKernel:
    """Leaves the other launches of a plan out."""

    kernel: str
    device: SimulatedDevice

    def run(self, launch: operators.Launch) -> None:
        if launch.kernel == self.kernel:
            self.device.run(launch)


@pytest.mark.parametrize("race_check", [False, True], ids=["values", "races"])
def test_a_block_s_router_counts_assignments(race_check: bool) -> None:
    """With shared experts, and a token of NaN, whose experts are the first."""
    rng = np.random.default_rng(0)
    routed, shared = SMALL[2], 2
    router = replace(routed.router, num_shared_experts=shared)
    block = draw_block(rng, replace(routed, num_experts=routed.num_experts + shared))
    x = draw_activations(rng, routed, 37)
    x[5] = np.nan
    inputs = operators.RouterInputs(x, block.gate[:-shared])
    call = operators.block_call((router, routed.gate_up), inputs, (block.gate_up, block.down), np.zeros_like(x), "few")
    launches = call.plan().launches
    assert [launch.kernel for launch in launches] == BLOCK_OF_GROUPS
    arguments = launches[0].arguments
    scratch = call.run(OneKernel("router", SimulatedDevice("random", race_check=race_check)))
    ids, counts = (scratch[arguments[index].scratch or 0].view(np.uint32) for index in (5, 8))
    assert counts[-shared:].tolist() == [37, 37]
    np.testing.assert_array_equal(counts, np.bincount(ids, minlength=routed.num_experts + shared))


@pytest.mark.parametrize("regime", REGIMES)
def test_every_schedule_gives_the_same_bytes(regime: str) -> None:
    case = GemmCase(tokens=(40,), rows=70, blocks=3, gated=True, activation="silu", num_experts=3, combine=True)
    attributes, tensors = gemm_arguments(case, draw_gemm_inputs(case))
    results = {
        schedule: operators.expert_gemm(SimulatedDevice(schedule), attributes, tensors, regime=regime).tobytes()
        for schedule in SCHEDULES
    }
    assert len(set(results.values())) == 1


def test_no_data_races() -> None:
    device = SimulatedDevice(race_check=True)
    check_gemm_case(device, RACED_GEMM, REGIMES)
    check_router_case(device, RACED_ROUTER)


@dataclass
class CountingDevice:
    """Runs launches and counts the bytes that they load, by buffer: each byte once a simdgroup."""

    loaded: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def run(self, launch: operators.Launch) -> None:
        self.loaded[launch.kernel] = count_loads(launch)


@needs_clang
@pytest.mark.parametrize("epilogue", [{}, {"combine": True}, {"gated": True, "bias": "same"}], ids=str)
@pytest.mark.parametrize(("format", "blocks"), [("mxfp4", 16), ("nvfp4", 32), ("nvfp4", 33), ("fp4", 8)])
def test_decode_loads_hardly_more_than_the_weights(format: str, blocks: int, epilogue: dict[str, Any]) -> None:
    """Weights, scales and bias by simdgroup, everything else once: what a device with a cache fetches from memory."""
    case = GemmCase(format=format, tokens=(1,), slots=4, rows=256, blocks=blocks, dtype="float16", **epilogue)
    attributes, tensors = gemm_arguments(case, draw_gemm_inputs(case))
    ids = np.arange(4, dtype=np.int32)[None]
    tensors = replace(tensors, expert_ids=ids)
    device = CountingDevice()
    y = operators.expert_gemm(device, attributes, tensors, regime="decode")
    (loaded,) = device.loaded.values()
    weights = sum(tensor[ids[0]].nbytes for tensor in (tensors.weights, tensors.scales))
    assert loaded[3] + loaded[4] >= weights, "the count misses loads"
    moved = loaded[3] + loaded[4] + loaded[6] + tensors.x.nbytes + ids.nbytes + y.nbytes
    assert moved <= 1.05 * weights


@needs_clang
def test_few_rows_share_one_load_of_the_weights() -> None:
    case = GemmCase(tokens=(8,), slots=1, rows=64, blocks=16, num_experts=3)
    attributes, tensors = gemm_arguments(case, draw_gemm_inputs(case))
    tensors = replace(tensors, expert_ids=np.ones((8, 1), np.int32))
    device = CountingDevice()
    operators.expert_gemm(device, attributes, tensors, regime="few")
    loaded = device.loaded["expert_few"]
    assert loaded[5] + loaded[6] == tensors.weights[1].nbytes + tensors.scales[1].nbytes


@needs_clang
@pytest.mark.parametrize("element", ["float", "half", "bfloat"])
@pytest.mark.parametrize("file", sorted(path.stem for path in KERNELS.glob("*.metal")))
def test_address_spaces(file: str, element: str) -> None:
    assert address_spaces.check(KERNELS / f"{file}.metal", {"ELEMENT": element}) == []
