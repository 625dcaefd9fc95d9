"""Simulated routing: its form, and that it shows what traces of trained models show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import (
    CacheSetup,
    KnownModel,
    RoutingSimulator,
    RoutingStyle,
    RoutingTrace,
    default_predictors,
    measures,
    profile_trace,
    scoreboard,
    simulate_cache,
    simulate_routing,
)
from onnx_moe.routing.trace import DECODE, PREFILL

#: The shape of the traces that the defaults are fitted to, with fewer layers.
MODEL = KnownModel("fitted", 13, 1, 128, 6, 64, 64)


def fitted(style: RoutingStyle | None = None, seed: int = 0) -> RoutingTrace:
    return simulate_routing(MODEL, 128, prompt_tokens=28, request_tokens=128, style=style, seed=seed)


def figures(trace: RoutingTrace) -> dict[str, float]:
    counts = profile_trace(trace).counts
    loads = counts.counts[DECODE]
    overlap = counts["lag_shared"][DECODE].sum(0) / (counts["lag_tokens"][DECODE].sum(0) * trace.top_k)
    decoded = np.repeat(trace.phases == DECODE, np.diff(trace.offsets))
    hits = {}
    for share in (0.125, 0.25):
        setup = CacheSetup(int(share * 12 * 128), share=int(share * 128))
        outcomes = simulate_cache(trace, setup).outcomes[decoded]
        hits[share] = (outcomes == 1).sum() / (outcomes != 2).sum()
    table = {"table": default_predictors(128)["cross-layer"]}
    (_, score) = scoreboard(trace.select(trace.phases == DECODE), table, [6])
    return {
        "entropy": float(measures.entropy(loads).mean()),
        "gini": float(measures.gini(loads).mean()),
        "active": float((loads > 0).sum(1).mean()),
        "overlap 1": float(overlap[0]),
        "overlap 8": float(overlap[7]),
        "LRU at an eighth": float(hits[0.125]),
        "LRU at a quarter": float(hits[0.25]),
        "table": score.recall,
    }


def test_the_defaults_show_what_traces_show() -> None:
    """Qwen3-30B-A3B, 128 decoded tokens after a prompt of 28, top-6: the traces' means, and how near they are met."""
    found = [figures(fitted(seed=seed)) for seed in range(4)]
    mean = {name: np.mean([each[name] for each in found]) for name in found[0]}
    traced = {
        "entropy": (0.74, 0.05),
        "gini": (0.77, 0.05),
        "active": (64, 16),
        "overlap 1": (0.38, 0.05),
        "overlap 8": (0.27, 0.05),
        "LRU at an eighth": (0.58, 0.06),
        "LRU at a quarter": (0.83, 0.06),
        "table": (0.51, 0.1),
    }
    for name, (expected, tolerance) in traced.items():
        assert mean[name] == pytest.approx(expected, abs=tolerance), name


def test_each_part_of_the_style_does_what_it_says() -> None:
    default = figures(fitted())
    even = RoutingStyle(zipf=0.0, topic_spread=0.0, kind_spread=0.0, reuse=0.0)
    flat = figures(fitted(even))
    assert flat["entropy"] > 0.97
    assert flat["overlap 1"] == pytest.approx(6 / 128, abs=0.02)
    assert figures(fitted(replace(even, zipf=1.2)))["entropy"] < 0.9
    sticky = figures(fitted(replace(even, reuse=40.0)))
    assert sticky["overlap 1"] > 4 * flat["overlap 1"]
    assert figures(fitted(replace(even, kind_spread=2.5)))["table"] > 3 * flat["table"]
    without_reuse = figures(fitted(RoutingStyle(reuse=0.0)))
    assert without_reuse["overlap 1"] < default["overlap 1"]


def test_topics_change_between_requests() -> None:
    model = KnownModel("x", 4, 0, 64, 4, 64, 64)
    trace = simulate_routing(model, 400, request_tokens=200, prompt_tokens=0, style=RoutingStyle(topic_tokens=1e9))
    halves = [profile_trace(trace.select(trace.requests == request)).counts.counts.sum(0) for request in range(2)]
    within = [
        profile_trace(trace.select((trace.requests == 0) & (np.arange(trace.num_calls) // 400 == half))).counts
        for half in range(2)
    ]
    apart = measures.jensen_shannon(*halves).mean()
    together = measures.jensen_shannon(*(each.counts.sum(0) for each in within)).mean()
    assert apart > 3 * together


def test_the_form_of_a_trace() -> None:
    trace = simulate_routing("glm-4.7-flash", 50, prompt_tokens=7, request_tokens=20)
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (46, 64, 4)
    assert trace.layer_names[0] == "layers.1"
    assert trace.layers.tolist() == list(range(46)) * (trace.num_calls // 46)
    prompts = trace.phases == PREFILL
    assert trace.tokens_of_calls[prompts].tolist() == [7] * 3 * 46
    assert trace.tokens_of_calls[~prompts].tolist() == [1] * 50 * 46
    assert np.unique(trace.requests).tolist() == [0, 1, 2]
    rows = np.sort(trace.experts.reshape(-1, 4), axis=1)
    assert (np.diff(rows, axis=1) > 0).all()  # distinct
    weights = trace.weights
    assert weights is not None
    np.testing.assert_allclose(weights.reshape(-1, 4).sum(1), 1, rtol=1e-5)
    assert (np.diff(weights.reshape(-1, 4), axis=1) <= 0).all()  # best first


def test_prompts_hold_the_tokens_in_order() -> None:
    """The same seed, all tokens decoded: the prompt's calls hold the same choices, layer by layer."""
    model = KnownModel("x", 3, 0, 8, 2, 64, 64)
    prompt = simulate_routing(model, 1, prompt_tokens=5, request_tokens=1, seed=3)
    alone = simulate_routing(model, 6, prompt_tokens=0, request_tokens=6, seed=3)
    tokens = alone.experts.reshape(6, 3, 2)
    np.testing.assert_array_equal(prompt.experts[: 5 * 3 * 2].reshape(3, 5, 2), tokens[:5].transpose(1, 0, 2))
    np.testing.assert_array_equal(prompt.experts[5 * 3 * 2 :].reshape(3, 2), tokens[5])


def test_draws_are_without_replacement_by_weight() -> None:
    simulator = RoutingSimulator(1, 4, 1, RoutingStyle(zipf=1.0, topic_spread=0, kind_spread=0, reuse=0), seed=0)
    counts = np.bincount([int(simulator.token()[0][0, 0]) for _ in range(6000)], minlength=4)
    expected = 1 / np.arange(1, 5)
    np.testing.assert_allclose(np.sort(counts)[::-1] / 6000, expected / expected.sum(), atol=0.025)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"prompt_tokens": -1}, "prompt_tokens is -1"),
        ({"request_tokens": 0}, "request_tok"),
    ],
)
def test_misuse_is_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        simulate_routing("mixtral", **options)  # type: ignore[arg-type]
