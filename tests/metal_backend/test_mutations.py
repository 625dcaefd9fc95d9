"""Tests of the tests: each mistake planted in a kernel is found by the check that it names."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from conformance.cases import GemmCase, RouterCase

from metal.simulator.device import KERNELS, SimulatedDevice

from .simulation import check_gemm_case, check_router_case, needs_compiler
from .test_kernels import RACED_GEMM, RACED_ROUTER

pytestmark = needs_compiler


@dataclass(frozen=True)
class Mutation:
    """`old`, the first of its kind in `file`, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    case: GemmCase | RouterCase
    regime: str = "decode"
    race_check: bool = False
    flush_subnormals: bool = False


_GATED = GemmCase(rows=34, gated=True, activation="silu", bias="float", global_scale="halves", blocks=3)
_TILED = GemmCase(tokens=(50,), rows=70, blocks=3, num_experts=3)
_TIES = RouterCase(num_experts=64, top_k=4, values="ties", num_groups=4, top_k_groups=2)

MUTATIONS = [
    Mutation("barrier dropped", "grouped.metal", "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    if (works)",
             "    if (works)", RACED_GEMM, regime="grouped", race_check=True),
    Mutation("second barrier dropped", "grouped.metal",
             "    threadgroup_barrier(mem_flags::mem_threadgroup);\n  }\n", "  }\n", RACED_GEMM, regime="grouped",
             race_check=True),
    Mutation("simdgroup barrier dropped", "router.metal",
             "    simdgroup_barrier(mem_flags::mem_threadgroup);\n    if (lane == 0) groups[best] = NAN;\n"
             "    simdgroup_barrier(mem_flags::mem_threadgroup);\n", "    if (lane == 0) groups[best] = NAN;\n",
             RACED_ROUTER, race_check=True),
    Mutation("slots are not waited for", "decode_combined.metal",
             "  threadgroup_barrier(mem_flags::mem_threadgroup);\n", "", RACED_GEMM, race_check=True),
    Mutation("next block's scale", "decode.h", "row_scale(weights, r, first + PART * part)",
             "row_scale(weights, r, first + PART * part + PART)", GemmCase(format="nvfp4", blocks=3)),
    Mutation("next codes not taken", "decode.h", "words[r] = next[r]", "words[r] = words[r]",
             GemmCase(rows=5, blocks=40)),
    Mutation("nibbles swapped", "fp4.h", "word << (12 - 4 * j)", "word << (4 * j)", _GATED),
    Mutation("up for gate", "few.metal", "r % halves == 0", "r % halves != 0", _GATED, regime="few"),
    Mutation("first assignment's row for all", "few.metal", "x + x_offsets[a]", "x + x_offsets[0]", _TILED,
             regime="few"),
    Mutation("tiles overlap", "grouping.metal", "row + i * TILE_ROWS", "row", _TILED, regime="few"),
    Mutation("gate's scale for up", "projection.h", "2 * expert + half_index : expert", "2 * expert : expert", _GATED),
    Mutation("bias of expert 0", "projection.h", "ulong(expert) * arguments.rows + row", "ulong(row)", _GATED),
    Mutation("another assignment's row", "grouped.metal", "grouped[first + row]", "first + row", _TILED,
             regime="grouped"),
    Mutation("whole tile skipped from row 8", "grouped.metal", "tile_row < count", "tile_row + 8 < count", _TILED,
             regime="grouped"),
    Mutation("columns not checked", "grouped.metal", "const bool has_weight = column < arguments.output_columns;",
             "const bool has_weight = true;", _TILED, regime="grouped"),
    Mutation("subnormal E8M0 doubled", "fp4.h", "CODE_UNIT * 0.5f", "CODE_UNIT",
             GemmCase(weights="scale_zero", rows=34)),
    Mutation("small weights flushed", "grouped.metal", "LIFT = 16.0f", "LIFT = 1.0f",
             GemmCase(weights="scale_zero", rows=34), regime="grouped", flush_subnormals=True),
    Mutation("another expert's weights", "vector.h", "ulong(expert) * arguments.rows + weight_row", "weight_row",
             _GATED),
    Mutation("next period's codes not taken", "grouped.metal", "next_codes = load_codes(codes, base + PERIOD",
             "next_codes = load_codes(codes, base", GemmCase(blocks=9), regime="grouped"),
    Mutation("columns beyond the row's end", "grouped.metal", "if (column + LOADED / 2 >= columns)", "if (false)",
             GemmCase(format="nvfp4", blocks=3), regime="grouped"),
    Mutation("ties to the highest id", "router.metal", "simd_min(best_value", "simd_max(best_value", _TIES),
    Mutation("groups of opposite infinities", "router.metal", "isnan(score) ? -INFINITY : score", "score",
             RouterCase(gate="absent", values="opposites", num_groups=4, top_k_groups=3, group_scoring="top2_sum",
                        scoring="softmax_after_topk", tokens=(64,))),
    Mutation("slots out of order of weight", "combine.metal", "expert_weights[first + slot]",
             "expert_weights[first + arguments.slots - 1 - slot]", GemmCase(combine=True), regime="few"),
]  # fmt: skip


def planted(mutation: Mutation, folder: Path) -> Path:
    kernels = folder / "kernels"
    shutil.copytree(KERNELS, kernels)
    path = kernels / mutation.file
    text = path.read_text()
    assert mutation.old in text, "the mutation no longer fits the kernel"
    path.write_text(text.replace(mutation.old, mutation.new, 1))
    return kernels


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_found(mutation: Mutation, tmp_path: Path) -> None:
    _check(mutation, KERNELS)
    with pytest.raises((AssertionError, RuntimeError)):
        _check(mutation, planted(mutation, tmp_path))


def _check(mutation: Mutation, kernels: Path) -> None:
    flags = {"race_check": mutation.race_check, "flush_subnormals": mutation.flush_subnormals}
    device = SimulatedDevice(kernels=kernels, **flags)
    if isinstance(mutation.case, RouterCase):
        check_router_case(device, mutation.case)
    else:
        check_gemm_case(device, mutation.case, [mutation.regime])
