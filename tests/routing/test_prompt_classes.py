"""Kinds of prompts apart, and where a cache misses: recomputed from the trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_moe.routing import (
    CacheSetup,
    RoutingProfile,
    RoutingTrace,
    SlotDivision,
    profile_trace,
    simulate_cache,
    simulate_routing,
)
from onnx_moe.routing.models import KnownModel
from onnx_moe.routing.report import render_page
from onnx_moe.routing.trace import DECODE

MODEL = KnownModel("small", 3, 0, 16, 2, 64, 64)
CLASSES = {0: "code", 1: "prose", 2: "code", 3: "prose"}


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return simulate_routing(MODEL, 400, prompt_tokens=20, request_tokens=100, seed=2)


@pytest.fixture(scope="module")
def profile(trace: RoutingTrace) -> RoutingProfile:
    return profile_trace(trace, name="small", expert_bytes=1000, class_of_request=CLASSES)


def test_divergence_of_classes(trace: RoutingTrace, profile: RoutingProfile) -> None:
    section = profile.document()["prompt_classes"]
    assert (section["names"], section["tokens"]) == (["code", "prose"], [240, 240])
    values = []
    for layer in range(3):
        shares = []
        for kind in ("code", "prose"):
            counts = np.zeros(16)
            for call in trace.calls():
                if call.layer == layer and CLASSES[call.request] == kind:
                    np.add.at(counts, call.expert_ids.reshape(-1), 1)
            shares.append(counts / counts.sum())
        middle = sum(shares) / 2
        values.append(sum((p[p > 0] * np.log2(p[p > 0] / middle[p > 0])).sum() for p in shares) / 2)
    assert section["divergence"][0][1] == section["divergence"][1][0] == pytest.approx(np.mean(values), rel=1e-5)
    assert section["divergence"][0][0] == 0
    assert "Between kinds of prompts" in render_page(profile.document())
    assert profile_trace(trace, class_of_request=dict.fromkeys(range(4), "one")).document()["prompt_classes"] is None


def test_classes_are_saved_and_merged(tmp_path: Path, trace: RoutingTrace, profile: RoutingProfile) -> None:
    profile.save(tmp_path / "p.npz")
    assert RoutingProfile.load(tmp_path / "p.npz").document() == profile.document()
    other = profile_trace(trace, name="small", class_of_request={0: "prose", 1: "mail", 2: "mail", 3: "mail"})
    merged = profile.merge(other).classes
    assert merged is not None
    assert merged.names == ("code", "prose", "mail")
    assert merged.tokens[:, 0].tolist() == [240, 240 + 120, 360]


def test_misses_by_expert(trace: RoutingTrace, profile: RoutingProfile) -> None:
    section = profile.document()["cache"]["misses"]
    decoding = trace.select(trace.phases == DECODE)
    assert section["capacity"] == 12  # a quarter of 48
    slots = SlotDivision.of(12, 3, 16, 2)
    setup = CacheSetup(slots.capacity, "decayed-lfu", slots.layer_floor, share=slots.share)
    outcomes = simulate_cache(decoding, setup).outcomes
    missed = np.zeros((3, 16))
    for call in range(100 * 3, decoding.num_calls):  # the first quarter warms up
        for at in range(decoding.offsets[call], decoding.offsets[call + 1]):
            missed[decoding.layers[call], decoding.experts[at]] += outcomes[at] == 0
    np.testing.assert_allclose(section["share"], missed / missed.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(section["per_token"], missed.sum(1) / 300, rtol=1e-5)
    np.testing.assert_allclose(section["bytes_per_token"], missed.sum(1) / 300 * 1000, rtol=1e-5)
