"""Curves of hit rates, the plan that is read from them, and decoding made of prompts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from onnx_moe import OnnxMoeError
from onnx_moe.cli.text import parse_bandwidth, parse_bytes
from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import (
    CacheSetup,
    HitRates,
    KnownModel,
    Machine,
    RoutingTrace,
    SlotDivision,
    hit_rate_curves,
    known_model,
    plan,
    profile_trace,
    simulate_cache,
    simulate_routing,
)
from onnx_moe.routing.hit_rates import decoding_calls
from onnx_moe.routing.trace import DECODE, PREFILL
from tests.routing.traces import decoded, random_trace

MODEL = known_model("olmoe-1b-7b")


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return simulate_routing(MODEL, 160, seed=1)


def test_no_policy_beats_the_bound(trace: RoutingTrace) -> None:
    found = hit_rate_curves(trace)
    bound = found.curve("belady").hit_rate
    for policy in ("lru", "decayed-lfu"):
        curve = found.curve(policy)
        assert (curve.hit_rate <= bound + 1e-12).all()
        assert curve.capacity[0] == trace.num_layers * trace.top_k + 1  # the token's cycle, and a slot to read into
        assert curve.capacity[-1] == trace.num_layers * trace.num_experts
    assert bound[-1] == found.curve("static").hit_rate[-1] == 1.0


def test_a_point_of_the_curve_is_a_simulation(trace: RoutingTrace) -> None:
    found = hit_rate_curves(trace, shares=[0.25])
    decoding = trace.select(trace.phases == DECODE)
    capacity = trace.num_layers * trace.num_experts // 4
    # Of 256 slots, a sixteenth but at most 8 are for experts that pass by; each layer has twice a token's and an even
    # share.
    setup = CacheSetup(248, "decayed-lfu", layer_floor=8, share=15)
    assert SlotDivision.of(capacity, 16, 64, 8) == SlotDivision(16 * 8 + 1, 248, 8, 15, 8)
    outcomes = simulate_cache(decoding, setup).outcomes.reshape(160, -1)
    counted = outcomes[40:]
    assert found.warmup_tokens == 40
    assert found.tokens == 160
    assert found.lookups == counted.size
    assert found.curve("decayed-lfu").hit_rate[-1] == (counted == 1).mean()


def test_pinned_experts_are_those_of_the_warm_up() -> None:
    ids = np.array([[0], [1], [0], [2]] + [[1], [0], [3], [3]] * 3)[:, None]  # 16 tokens of one layer, 4 warm up
    found = hit_rate_curves(decoded(ids, 4), shares=[0.25, 0.5, 1.0])
    assert found.curve("static").capacity.tolist() == [2, 4]
    np.testing.assert_allclose(found.curve("static").hit_rate, [6 / 12, 1])


def test_layers_without_calls_do_not_count() -> None:
    """One of ten layers called: its experts are the bank, its token the cycle, and the curve is that layer's alone."""
    one = simulate_routing(KnownModel("one", 1, 0, 32, 2, 64, 64), 200, seed=3)
    padded = dataclasses.replace(one, layers=one.layers + 6, layer_names=tuple("0123456789"))
    alone, found = hit_rate_curves(one), hit_rate_curves(padded)
    assert (found.num_layers, found.bank, found.cycle, found.least) == (1, 32, 2, 3)
    assert found.tokens == alone.tokens == 200
    for curve in alone.curves:
        np.testing.assert_array_equal(found.curve(curve.policy).hit_rate, curve.hit_rate)
    document = profile_trace(padded).document()
    assert (document["cache"]["layers"], document["cache"]["bank_experts"]) == (1, 32)
    planned = plan(padded, 100, Machine(1600, 1e9))
    assert planned.bank_bytes == 3200
    assert min(planned.pins) >= 6 * 32


def test_lookups_are_distinct_experts_of_a_call() -> None:
    trace = random_trace(3, passes=80)
    found = hit_rate_curves(trace, shares=[0.6])
    decoding = trace.select(trace.phases == DECODE)
    outcomes = simulate_cache(decoding, CacheSetup(30)).outcomes
    assert found.lookups < (outcomes != 2).sum()
    calls = decoding.num_calls
    counted = decoding.select(slice(int(calls * 0.25), None))
    first = int(np.flatnonzero(counted.layers == 0)[0])
    counted = counted.select(slice(first, None))
    expected = sum(
        len(set(counted.experts[a:b].tolist())) for a, b in zip(counted.offsets[:-1], counted.offsets[1:], strict=True)
    )
    assert found.lookups == expected


def test_least_capacity() -> None:
    curve = HitRates("lru", np.array([10, 20, 40]), np.array([0.5, 0.7, 0.9]))
    assert [curve.least_capacity(rate) for rate in (0.3, 0.5, 0.6, 0.8, 0.9, 0.95)] == [10, 10, 15, 30, 40, None]


def test_prompts_become_decoding_where_nothing_was_decoded() -> None:
    trace = random_trace(4, passes=30)
    prompts = trace.select(trace.phases == PREFILL)
    calls, phase = decoding_calls(prompts)
    assert phase == PREFILL
    # Pass by pass, token by token, layer by layer.
    expected = []
    for first in range(0, prompts.num_calls, prompts.num_layers):
        rows = [
            prompts.experts[prompts.offsets[c] : prompts.offsets[c + 1]].reshape(-1, prompts.top_k)
            for c in range(first, first + prompts.num_layers)
        ]
        expected += [rows[layer][token] for token in range(len(rows[0])) for layer in range(prompts.num_layers)]
    np.testing.assert_array_equal(calls.experts.reshape(-1, prompts.top_k), expected)
    assert calls.layers.tolist() == list(range(4)) * (calls.num_calls // 4)
    assert calls.weights is not None
    assert calls.weights.sum() == pytest.approx(prompts.weights.sum())  # type: ignore[union-attr]


def test_an_empty_trace_is_refused(trace: RoutingTrace) -> None:
    with pytest.raises(InvalidInputError, match="holds no call"):
        hit_rate_curves(trace.select(slice(0)))


def test_an_unknown_curve_is_named(trace: RoutingTrace) -> None:
    with pytest.raises(InvalidInputError, match="policy='fifo' was not simulated"):
        hit_rate_curves(trace, shares=[1.0]).curve("fifo")


class TestPlan:
    BYTES = MODEL.expert_bytes()

    def test_the_figures_follow_from_the_hit_rate(self, trace: RoutingTrace) -> None:
        memory = 300 * self.BYTES + 17
        found = plan(trace, self.BYTES, Machine(memory, 1e9, compute_seconds=0.01))
        operation = found.policies["decayed-lfu"]
        assert operation.capacity == 300
        assert (
            operation.hit_rate
            == found.curves.curve("decayed-lfu").hit_rate[
                found.curves.curve("decayed-lfu").capacity.tolist().index(300)
            ]
        )
        # One sequence: each layer looks up its top_k experts.
        missing = (1 - operation.hit_rate) * MODEL.num_moe_layers * MODEL.top_k * self.BYTES
        assert operation.miss_bytes == pytest.approx(missing)
        assert operation.tokens_per_second == pytest.approx(1 / (0.01 + missing / 1e9))
        assert found.bank_bytes == 16 * 64 * self.BYTES
        assert found.cycle_bytes == 16 * 8 * self.BYTES

    def test_targets_reach_their_hit_rate(self, trace: RoutingTrace) -> None:
        found = plan(trace, self.BYTES, Machine(300 * self.BYTES, 1e9))
        reached = {target: operation for target, operation in found.targets.items() if operation is not None}
        assert reached
        for target, operation in reached.items():
            assert operation.hit_rate >= target - 1e-9
            assert operation.bytes == operation.capacity * self.BYTES

    def test_pins_are_the_most_used_experts(self, trace: RoutingTrace) -> None:
        found = plan(trace, self.BYTES, Machine(200 * self.BYTES, 1e9))
        uses = np.zeros(16 * 64, np.int64)
        for call in range(trace.num_calls):
            for expert in trace.experts[trace.offsets[call] : trace.offsets[call + 1]]:
                uses[trace.layers[call] * 64 + expert] += 1
        assert len(found.pins) == 200
        assert len(set(found.pins.tolist())) == 200
        assert uses[found.pins].min() >= np.sort(uses)[-200]
        assert (np.diff(uses[found.pins]) <= 0).all()

    def test_all_experts_need_no_disk(self, trace: RoutingTrace) -> None:
        found = plan(trace, self.BYTES, Machine(10**12, 1e9))
        assert found.policies["belady"].tokens_per_second == float("inf")
        used = {(int(trace.layers[call]), e) for call in range(trace.num_calls)
                for e in trace.experts[trace.offsets[call] : trace.offsets[call + 1]].tolist()}  # fmt: skip
        assert len(used) < 16 * 64  # and those that were never used are not pinned
        assert {divmod(key, 64) for key in found.pins.tolist()} == used

    def test_too_little_memory_is_refused_with_what_is_needed(self, trace: RoutingTrace) -> None:
        needed = (16 * 8 + 1) * self.BYTES
        with pytest.raises(
            OnnxMoeError,
            match=f"a token uses 128 on its way through 16 layers, and one slot is for reading: give at least {needed}",
        ):
            plan(trace, self.BYTES, Machine(needed - 1, 1e9))
        assert plan(trace, self.BYTES, Machine(needed, 1e9)).least_bytes == needed

    @pytest.mark.parametrize(
        ("machine", "message"),
        [
            ({"memory_bytes": 0, "disk_bandwidth": 1e9}, "memory_bytes is 0"),
            ({"memory_bytes": 10, "disk_bandwidth": 0.0}, "disk_bandwidth is 0.0"),
            ({"memory_bytes": 10, "disk_bandwidth": -9.0}, "disk_bandwidth is -9.0"),
            ({"memory_bytes": 10, "disk_bandwidth": 1e9, "compute_seconds": math.nan}, "compute_seconds is nan"),
        ],
    )
    def test_machines_that_cannot_be(self, machine: dict[str, float], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            Machine(**machine)  # type: ignore[arg-type]

    def test_experts_of_no_bytes(self, trace: RoutingTrace) -> None:
        with pytest.raises(InvalidInputError, match="expert_bytes is 0"):
            plan(trace, 0, Machine(10, 1e9))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16GiB", 16 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("2 kib", 2048),
        ("500MB", 500_000_000),
        ("12", 12),
        ("2KiB", 2048),
        ("7B", 7),
    ],
)
def test_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text, "memory") == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 gigs", "1e9", "0", "0.4", "1.2.3GB"])
def test_bad_bytes(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"memory is .*: use a number of bytes, such as 16GiB"):
        parse_bytes(text, "memory")


def test_bandwidth() -> None:
    assert parse_bandwidth("2GB/s") == parse_bandwidth("2GB") == 2e9
    for text in ("2GB/h", "0.1", "-2GB"):
        with pytest.raises(InvalidInputError, match=f"disk bandwidth is '{text}'"):
            parse_bandwidth(text)
