"""The native sketch against loops, its windows, its merging, and its errors."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from onnx_moe import OnnxMoeError
from onnx_moe.routing import CacheSetup, Call, RoutingSketch, RoutingTrace, simulate_cache
from onnx_moe.routing.counts import RoutingCounts
from tests.routing.naive import naive_counts
from tests.routing.traces import decoded, random_trace, traces


def counts_of(*parts: RoutingTrace, probabilities: np.ndarray | None = None) -> RoutingCounts:
    sketch = RoutingSketch(parts[0].num_experts, parts[0].num_layers, parts[0].top_k)
    for part in parts:
        sketch.add(part, probabilities)
    return sketch.counts()


def assert_equal(counts: RoutingCounts, expected: dict[str, np.ndarray]) -> None:
    for name, column in expected.items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(counts[name], column, rtol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(counts[name], column, err_msg=name)


@pytest.mark.parametrize("seed", range(4))
def test_every_count_equals_loops(seed: int) -> None:
    trace = random_trace(seed, passes=60)
    assert_equal(counts_of(trace), naive_counts(trace))


@settings(max_examples=150, deadline=None)
@given(traces())
def test_every_count_equals_loops_for_any_calls(trace: RoutingTrace) -> None:
    assert_equal(counts_of(trace), naive_counts(trace))


def test_probabilities_of_all_experts_are_counted() -> None:
    trace = random_trace(5)
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(trace.num_experts), len(trace.experts) // trace.top_k)
    probabilities = probabilities.astype(np.float32)
    counts = counts_of(trace, probabilities=probabilities)
    assert counts.has_probabilities
    assert_equal(counts, naive_counts(trace, probabilities.astype(np.float64)))


def test_more_experts_than_a_word_has_bits() -> None:
    trace = random_trace(6, passes=20, layers=3, experts=150, top_k=9)
    assert_equal(counts_of(trace), naive_counts(trace))


def test_windows_are_joined_when_they_are_full() -> None:
    ids = np.random.default_rng(1).permuted(np.tile(np.arange(5), (3000, 2, 1)), axis=-1)[..., :2]
    trace = decoded(ids, 5)
    counts = counts_of(trace)
    assert counts["window_tokens"].tolist() == [16, 64]  # 64 windows of 16 and of 32 tokens do not hold 3000
    by_window = np.zeros((64, 2, 5), np.int64)
    for token, layers in enumerate(ids):
        for layer, chosen in enumerate(layers):
            by_window[token // 64, layer, chosen] += 1
    np.testing.assert_array_equal(counts["window_counts"][1], by_window)


def test_the_line_of_time_is_packed() -> None:
    """Distances far beyond one line of the native stack."""
    ids = np.random.default_rng(2).integers(0, 40, (4000, 1, 1))
    trace = decoded(ids, 40)
    stack: list[int] = []
    expected = np.zeros(41, np.int64)
    for expert in ids.reshape(-1).tolist():
        expected[stack.index(expert) if expert in stack else 40] += 1
        stack = [expert, *(each for each in stack if each != expert)]
    np.testing.assert_array_equal(counts_of(trace)["stack_distances"][1], expected)


@pytest.mark.parametrize("seed", range(3))
def test_stack_distances_give_lru_of_every_capacity(seed: int) -> None:
    trace = random_trace(seed, passes=80, layers=3, experts=12, top_k=2)
    distances = counts_of(trace)["stack_distances"].sum(0)
    for capacity in range(12, 37):  # a call's experts fit
        assert simulate_cache(trace, CacheSetup(capacity)).hits == distances[:capacity].sum(), capacity


def test_adding_in_parts_is_adding_at_once() -> None:
    trace = random_trace(7)
    parts = (trace.select(slice(0, 33)), trace.select(slice(33, None)))
    assert_equal(counts_of(*parts), dict(counts_of(trace).columns))


def test_merging_adds_what_adds_up() -> None:
    first, second = random_trace(8, passes=50), random_trace(9, passes=90)
    merged, whole = counts_of(first).merge(counts_of(second)), counts_of(first, second)
    for name in ("calls", "tokens", "rank_counts", "mass", "pairs", "first_use"):
        np.testing.assert_allclose(merged[name], whole[name], rtol=1e-12, err_msg=name)
    # What looks across the seam of two runs is not there after merging: one run's end says nothing of another's begin.
    assert merged["transitions"].sum() == whole["transitions"].sum()
    assert merged["stack_distances"].sum() == whole["stack_distances"].sum()
    assert (merged["gaps"].sum((0, 2)) <= whole["gaps"].sum((0, 2))).all()
    np.testing.assert_array_equal(merged["window_counts"].sum(1), whole["window_counts"].sum(1))


def test_merged_windows_follow_each_other() -> None:
    def run(tokens: int, expert: int) -> RoutingCounts:
        return counts_of(decoded(np.full((tokens, 1, 1), expert), 3))

    merged = run(1500, 0).merge(run(700, 2))  # windows of 32 and of 16 tokens
    assert merged["first_use"].tolist() == [[0, -1, 1500]]
    assert merged["window_tokens"][1] == 64
    windows = merged["window_counts"][1, :, 0]
    assert windows[:24].sum(0).tolist() == [1500, 0, 0]
    assert windows[24:35].sum(0).tolist() == [0, 0, 700]
    assert not windows[35:].any()


def test_more_tokens_than_counts_hold_are_refused() -> None:
    counts = counts_of(random_trace(0, passes=2))
    counts["tokens"][:] = 2**31
    with pytest.raises(OnnxMoeError, match="8589934592 tokens of a layer together, but a profile holds 4294967295"):
        counts.merge(counts)


def test_merging_other_sizes_is_refused() -> None:
    with pytest.raises(OnnxMoeError, match=r"profiles of \(4, 8, 3\) and \(4, 9, 3\)"):
        counts_of(random_trace(0)).merge(counts_of(random_trace(0, experts=8)))


def test_threads_may_add_at_once() -> None:
    trace = random_trace(10, passes=200)
    sketch = RoutingSketch(trace.num_experts, trace.num_layers, trace.top_k)
    threads = [threading.Thread(target=sketch.add, args=(trace,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(sketch.counts().counts, 4 * counts_of(trace).counts)


def test_memory_does_not_grow_with_tokens() -> None:
    few, many = counts_of(random_trace(1, passes=5)), counts_of(random_trace(1, passes=300))
    assert {n: c.nbytes for n, c in few.columns.items()} == {n: c.nbytes for n, c in many.columns.items()}


def test_a_call_that_cannot_be_adds_nothing() -> None:
    trace = random_trace(11)
    sketch = RoutingSketch(trace.num_experts, trace.num_layers, trace.top_k)
    broken = replace(trace)
    broken.experts[-1] = 99  # behind the checks of RoutingTrace
    with pytest.raises(OnnxMoeError, match="call 159 holds expert 99, but experts are numbered 0 to 8"):
        sketch.add(broken)
    assert not sketch.counts().counts.any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 2, 1), "num_experts is 0"), ((4, 0, 1), "num_layers is 0"), ((4, 2, 5), "top_k is 5, but there are 4")],
)
def test_sizes_that_cannot_be(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(OnnxMoeError, match=message):
        RoutingSketch(*sizes)


def test_misuse_is_named() -> None:
    trace = random_trace(0)
    with pytest.raises(
        OnnxMoeError, match=r"has \(4, 9, 3\) layers, experts and top_k, but the profile is of \(2, 9, 3\)"
    ):
        RoutingSketch(9, 2, 3).add(trace)
    with pytest.raises(OnnxMoeError, match=r"probabilities has shape \[1, 9\], but must be"):
        RoutingSketch(9, 4, 3).add(trace, np.ones((1, 9), np.float32))


def test_an_expert_twice_in_a_row_counts_twice_and_is_no_pair() -> None:
    trace = RoutingTrace.of_calls([Call(0, np.array([[1, 1], [0, 1]], np.int32))], 3, 1)
    counts = counts_of(trace)
    assert counts.counts[1, 0].tolist() == [1, 3, 0]
    pairs = counts.pairs_of(0)
    assert pairs.tolist() == [[1, 1, 0], [1, 3, 0], [0, 0, 0]]
    assert counts["gaps"][1, 0].sum() == 1  # expert 1, one token later
