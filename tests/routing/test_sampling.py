"""The stretch of a recording on which caches are replayed: whole passes, of decoding where there is any."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from onnx_moe.routing import Call, MoERoutingProfiler, RoutingTrace, hit_rate_curves, profile_trace
from onnx_moe.routing.profile import SAMPLE_IDS
from onnx_moe.routing.sampling import LEAST_STEPS, NO_WHOLE_PASS, PassKeeper, sample_of
from onnx_moe.routing.trace import DECODE, PREFILL
from tests.routing.traces import random_trace

LAYERS, EXPERTS, TOP_K = 24, 64, 8


def drawn(random: np.random.Generator, tokens: int, experts: int = EXPERTS, top_k: int = TOP_K) -> np.ndarray:
    """Ids [tokens, top_k], each token's distinct, all experts alike."""
    return np.argpartition(random.random((tokens, experts), np.float32), top_k, axis=1)[:, :top_k].astype(np.int32)


def uniform(tokens: list[tuple[int, int]], layers: int = LAYERS) -> RoutingTrace:
    """Passes of (phase, tokens) through all layers."""
    random = np.random.default_rng(0)
    calls = [Call(layer, drawn(random, count), None, phase) for phase, count in tokens for layer in range(layers)]
    return RoutingTrace.of_calls(calls, EXPERTS, layers)


def check(sample: RoutingTrace | None, phase: int, rows: int) -> RoutingTrace:
    """Every layer is there, as often as any other, with the same rows, within the bound."""
    assert sample is not None
    assert len(sample.experts) <= SAMPLE_IDS
    assert set(sample.phases.tolist()) == {phase}
    assert set(sample.tokens_of_calls.tolist()) == {rows}
    assert len(set(np.bincount(sample.layers, minlength=sample.num_layers).tolist())) == 1
    return sample


def test_one_long_prompt() -> None:
    """Uniform routing has no small cache that does well, whatever part of a 4,000-token prompt is kept."""
    trace = uniform([(PREFILL, 4000)])
    profile = profile_trace(trace)
    rows = SAMPLE_IDS // (LAYERS * TOP_K)
    sample = check(profile.sample, PREFILL, rows)
    np.testing.assert_array_equal(sample.experts[: rows * TOP_K], trace.experts[: rows * TOP_K])  # its first tokens
    cache = profile.document()["cache"]
    assert (cache["layers"], cache["bank_experts"], cache["token_cycle_experts"]) == (24, 1536, 192)
    share = next(target["share"] for target in cache["targets"] if target["hit_rate"] == 0.9)
    assert 0.86 < share < 0.96
    assert profile.notes == ("Caches are replayed on the first 1,562 tokens of the last prompt, which has more.",)


def test_one_call_larger_than_the_sample() -> None:
    profile = profile_trace(uniform([(PREFILL, 50_000)], layers=1))
    check(profile.sample, PREFILL, SAMPLE_IDS // TOP_K)
    assert profile.document()["cache"]["bank_experts"] == EXPERTS


def test_layers_that_are_recorded_one_after_the_other() -> None:
    """The pattern of docs/routing.md: 10,000 tokens of each layer in one call of record_routing."""
    random = np.random.default_rng(0)
    profiler = MoERoutingProfiler(EXPERTS, LAYERS, TOP_K)
    for layer in range(LAYERS):
        profiler.record_routing(layer, drawn(random, 10_000))
    check(profiler.profile().sample, PREFILL, SAMPLE_IDS // (LAYERS * TOP_K))
    assert profiler.profile().notes == (
        "Caches are replayed on the first 1,562 tokens of the last prompt, which has more.",
    )
    share = next(t["share"] for t in profiler.generate_report()["cache"]["targets"] if t["hit_rate"] == 0.9)
    assert share > 0.86


def test_decoding_before_a_long_prompt_is_kept() -> None:
    trace = uniform([(DECODE, 1)] * 300 + [(PREFILL, 3000)])
    profile = profile_trace(trace)
    assert check(profile.sample, DECODE, 1).num_calls == 300 * LAYERS
    assert profile.document()["cache"]["phase"] == "decode"
    assert profile.notes == ()
    profiler = MoERoutingProfiler(EXPERTS, LAYERS, TOP_K)
    for call in trace.calls():
        profiler.record_routing(call.layer, call.expert_ids)
    assert check(profiler.profile().sample, DECODE, 1).num_calls == 300 * LAYERS


def test_large_batches_are_cut_by_rows() -> None:
    """1,200 sequences decoded together: some of them, step by step, rather than a fragment of one step."""
    profile = profile_trace(uniform([(DECODE, 1200)] * 20, layers=12))
    rows = SAMPLE_IDS // (12 * TOP_K * LEAST_STEPS)
    assert check(profile.sample, DECODE, rows).num_calls == LEAST_STEPS * 12
    assert profile.notes == ("Caches are replayed on 195 of up to 1,200 sequences that were decoded together.",)
    assert profile.document()["cache"]["step_tokens"] == rows


def test_short_prompts_after_a_long_one_are_whole() -> None:
    profile = profile_trace(uniform([(PREFILL, 3000), (PREFILL, 20), (PREFILL, 20)]))
    assert check(profile.sample, PREFILL, 20).num_calls == 2 * LAYERS
    assert profile.notes == ()


def test_no_whole_pass(caplog: pytest.LogCaptureFixture) -> None:
    """A step of one layer, then one of the other: nothing that a model runs. Counts are there, no replay is made up."""
    random = np.random.default_rng(0)
    calls = [Call(layer, drawn(random, 1, 9, 2)) for layer in (1, 0) for _ in range(5)]
    trace = RoutingTrace.of_calls(calls, 9, 2)
    with caplog.at_level(logging.WARNING):
        profile = profile_trace(trace)
    assert profile.sample is None
    assert profile.notes == (NO_WHOLE_PASS,)
    assert NO_WHOLE_PASS in caplog.text
    document = profile.document()
    assert (document["recorded"]["notes"], document["cache"]["curves"]) == ([NO_WHOLE_PASS], [])
    assert document["summary"]["tokens"] == 5
    profiler = MoERoutingProfiler(9, 2, 2)
    for call in calls:
        profiler.record_routing(call.layer, call.expert_ids)
    assert profiler.profile().notes == (NO_WHOLE_PASS,)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [1, 40, 200, 10**6])
def test_any_mixture(seed: int, limit: int) -> None:
    """Prompts, batches and single tokens mixed: whole passes, in order, of decoding, and the last ones."""
    trace = random_trace(seed, passes=60)
    sample = sample_of(trace, limit)
    assert sample is not None
    decoding = trace.select(trace.phases == DECODE)
    passes = sample.num_calls // trace.num_layers
    assert sample.layers.tolist() == list(range(trace.num_layers)) * passes
    assert sample.requests.tolist() == decoding.requests[-sample.num_calls :].tolist()
    rows = sample.tokens_of_calls.max()
    np.testing.assert_array_equal(
        sample.experts, decoding.select(slice(-sample.num_calls, None)).first_rows(rows).experts
    )
    assert len(sample.experts) <= max(limit, passes * trace.num_layers * trace.top_k)
    hit_rate_curves(sample)


@pytest.mark.parametrize("limit", [60, 400, 10**6])
def test_what_is_kept_while_recording_is_the_same(limit: int) -> None:
    trace = random_trace(5, passes=80)
    keeper = PassKeeper(limit, trace.num_layers, trace.top_k)
    for call in trace.calls():
        keeper.add(call)
    kept = keeper.sample(trace.num_experts, trace.layer_names)
    assert kept is not None
    expected = sample_of(trace, limit)
    assert expected is not None
    if limit == 10**6:
        np.testing.assert_array_equal(kept.experts, expected.experts)
    else:  # cut to rows as they came, so that perhaps more steps fit
        assert len(kept.experts) <= limit
        assert kept.layers.tolist() == list(range(trace.num_layers)) * (kept.num_calls // trace.num_layers)
