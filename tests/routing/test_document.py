"""The figures of a profile's document, computed anew from the trace; saving, merging, comparing profiles."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_moe.dispatch import compute_load_balancing_loss
from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import (
    MoERoutingProfiler,
    RoutingProfile,
    RoutingTrace,
    balance_of,
    compare,
    profile_trace,
    simulate_routing,
)
from onnx_moe.routing.document.values import plain
from onnx_moe.routing.models import KnownModel
from onnx_moe.routing.trace import PHASES

MODEL = KnownModel("small", 5, 1, 24, 3, 64, 64)
BYTES = 1_000_000


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return simulate_routing(MODEL, 600, prompt_tokens=40, request_tokens=150, seed=5)


@pytest.fixture(scope="module")
def profile(trace: RoutingTrace) -> RoutingProfile:
    return profile_trace(trace, name="small", expert_bytes=BYTES, source="a test")


@pytest.fixture(scope="module")
def document(profile: RoutingProfile) -> dict[str, Any]:
    document = profile.document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    return document


def tokens_of(trace: RoutingTrace, phase: int | None, layer: int) -> list[dict[str, Any]]:
    """Tokens of a layer in order: ids, weights, request."""
    found = []
    for call in range(trace.num_calls):
        if trace.layers[call] != layer or (phase is not None and trace.phases[call] != phase):
            continue
        part = slice(trace.offsets[call], trace.offsets[call + 1])
        assert trace.weights is not None
        for ids, weights in zip(
            trace.experts[part].reshape(-1, 3).tolist(), trace.weights[part].reshape(-1, 3).tolist(), strict=True
        ):
            found.append({"ids": ids, "weights": weights, "request": int(trace.requests[call])})
    return found


def loads(tokens: list[dict[str, Any]]) -> np.ndarray:
    return np.bincount([expert for token in tokens for expert in token["ids"]], minlength=24)


def close(actual: Any, expected: Any) -> None:
    """Equal to six significant digits."""
    np.testing.assert_allclose(np.array(actual, float), np.array(expected, float), rtol=1e-5, atol=1e-9)


def test_head(document: dict[str, Any], trace: RoutingTrace) -> None:
    assert document["model"] == {
        "name": "small",
        "num_layers": 4,
        "num_experts": 24,
        "top_k": 3,
        "layer_names": ["layers.1", "layers.2", "layers.3", "layers.4"],
        "expert_bytes": BYTES,
    }
    recorded = document["recorded"]
    assert recorded["tokens"] == {"prefill": 160, "decode": 600}
    assert recorded["calls"] == {"prefill": 4, "decode": 600}
    assert (recorded["requests"], recorded["dropped_calls"], recorded["source"]) == (4, 0, "a test")
    assert (recorded["has_weights"], recorded["has_router_probabilities"]) == (True, False)


@pytest.mark.parametrize("layer", range(4))
def test_load(document: dict[str, Any], trace: RoutingTrace, layer: int) -> None:
    tokens = tokens_of(trace, None, layer)
    counts = loads(tokens)
    entry = document["per_layer"][layer]
    share = counts[counts > 0] / counts.sum()
    close(entry["entropy"], -(share * np.log(share)).sum() / math.log(24))
    close(entry["gini"], np.abs(counts[:, None] - counts[None]).sum() / (2 * 24 * counts.sum()))
    close(entry["load_balance_cv"], counts[counts > 0].std() / counts[counts > 0].mean())
    close(entry["max_over_mean"], counts.max() / counts.mean())
    assert entry["active_experts"] == (counts > 0).sum()
    assert entry["hot_experts"] == [e for e in range(24) if counts[e] > 1.5 * counts.mean()]
    assert entry["cold_experts"] == [e for e in range(24) if 0 < counts[e] < 0.5 * counts.mean()]
    assert entry["hot_experts"] == document["load_balance"]["hot_by_layer"][layer]
    for percent, number in entry["experts_for"].items():
        ordered = np.sort(counts)[::-1]
        assert ordered[:number].sum() >= int(percent) / 100 * counts.sum() - 1e-9
        assert ordered[: number - 1].sum() < int(percent) / 100 * counts.sum()


@pytest.mark.parametrize("phase", range(2))
def test_maps(document: dict[str, Any], trace: RoutingTrace, phase: int) -> None:
    for layer in range(4):
        tokens = tokens_of(trace, phase, layer)
        mass: Counter[int] = Counter()
        for token in tokens:
            mass.update(dict(zip(token["ids"], token["weights"], strict=True)))
        close(document["maps"][PHASES[phase]]["share"][layer], loads(tokens) / (3 * len(tokens)))
        close(document["maps"][PHASES[phase]]["mass"][layer], [mass[e] / mass.total() for e in range(24)])
    together = loads(tokens_of(trace, None, 2))
    close(document["maps"]["all"]["share"][2], together / together.sum())


def test_concentration(document: dict[str, Any], trace: RoutingTrace) -> None:
    section = document["concentration"]["decode"]
    at = section["experts_percent"].index(25)
    for layer in range(4):
        tokens = tokens_of(trace, 1, layer)
        counts = loads(tokens)
        close(section["per_layer"][layer]["in_sample"][at], 100 * np.sort(counts)[::-1][:6].sum() / counts.sum())
        # 600 tokens: 38 windows of 16, the first 19 and the rest.
        first, second = loads(tokens[: 19 * 16]), loads(tokens[19 * 16 :])
        best = np.argsort(-first, kind="stable")[:6]
        close(section["per_layer"][layer]["held_out"][at], 100 * second[best].sum() / second.sum())
    everything = np.concatenate([loads(tokens_of(trace, 1, layer)) for layer in range(4)])
    close(section["all"]["in_sample"][at], 100 * np.sort(everything)[::-1][:24].sum() / everything.sum())
    assert section["all"]["held_out"][at] < section["all"]["in_sample"][at]


def test_balance_of_windows(document: dict[str, Any], trace: RoutingTrace) -> None:
    section = document["balance"]["decode"]
    assert (section["basis"], section["window_tokens"], len(section["windows"])) == ("selected_weights", 16, 38)
    for layer in range(4):
        tokens = tokens_of(trace, 1, layer)
        for window in (0, 17, 37):
            part = tokens[16 * window : 16 * (window + 1)]
            counts, mass = loads(part), np.zeros(24)
            for token in part:
                np.add.at(mass, token["ids"], token["weights"])
            close(section["windows"][window][layer], 24 * (counts / counts.sum() * mass / mass.sum()).sum())
            share = counts[counts > 0] / counts.sum()
            close(section["entropy"][window][layer], -(share * np.log(share)).sum() / math.log(24))


def test_balance_with_router_probabilities_is_the_loss() -> None:
    random = np.random.default_rng(0)
    profiler = MoERoutingProfiler(6, 2, top_k=2)
    expected = []
    for layer in range(2):
        probabilities = random.dirichlet(np.full(6, 0.5), 80)
        ids = np.argsort(-probabilities, axis=1)[:, :2]
        profiler.record_routing(layer, ids, probabilities)
        expected.append(float(compute_load_balancing_loss(probabilities, ids, 6)))
    report = profiler.generate_report()
    assert report["balance"]["prefill"]["basis"] == "router_probabilities"
    close(report["balance"]["prefill"]["per_layer"], expected)
    close([entry["load_balancing"] for entry in report["per_layer"]], expected)


def test_balance_of_counts_alone() -> None:
    profiler = MoERoutingProfiler(4, 1, top_k=1)
    profiler.record_routing(0, [[0]] * 30 + [[1]] * 10)
    history = balance_of(profiler.counts, 0)
    assert history.basis == "counts"
    assert history.per_layer[0] == pytest.approx(4 * (0.75**2 + 0.25**2))


def test_overlap_and_reuse(document: dict[str, Any], trace: RoutingTrace) -> None:
    section = document["time"]["decode"]
    for layer in range(4):
        everything = tokens_of(trace, None, layer)
        # A request's decoded tokens follow its prompt.
        for lag in (1, 8):
            shared = total = 0
            for request in range(4):
                sequence = [set(t["ids"]) for t in everything if t["request"] == request]
                pairs = [(sequence[i], sequence[i - lag]) for i in range(40, len(sequence))]
                shared += sum(len(a & b) for a, b in pairs)
                total += 3 * len(pairs)
            close(section["overlap"][layer][lag - 1], shared / total)
        counts = loads(tokens_of(trace, 1, layer))
        close(section["chance"][layer], ((counts / 600) ** 2).sum() / 3)
    assert sum(section["reuse_counts"][0]) <= 3 * 600
    assert section["reuse_edges"] == [2**b for b in range(len(section["reuse_edges"]))]


def test_pairs(document: dict[str, Any], trace: RoutingTrace) -> None:
    tokens = tokens_of(trace, None, 1)
    counts = loads(tokens)
    pairs: Counter[tuple[int, int]] = Counter()
    for token in tokens:
        ids = sorted(token["ids"])
        pairs.update((a, b) for i, a in enumerate(ids) for b in ids[i + 1 :])
    lift = {pair: n * len(tokens) / (counts[pair[0]] * counts[pair[1]]) for pair, n in pairs.items() if n >= 10}
    found = document["cooccurrence"]["per_layer"][1]["top"]
    assert len(found) == 10
    close([entry["lift"] for entry in found], sorted(lift.values(), reverse=True)[:10])
    for entry in found:
        close(entry["lift"], lift[tuple(entry["experts"])])
        assert entry["count"] == pairs[tuple(entry["experts"])]
    frequent = document["cooccurrence"]["top_pairs"]
    summed: Counter[tuple[int, int]] = Counter()
    for layer in range(4):
        for token in tokens_of(trace, None, layer):
            ids = sorted(token["ids"])
            summed.update((a, b) for i, a in enumerate(ids) for b in ids[i + 1 :])
    assert [pair["count"] for pair in frequent] == sorted(summed.values(), reverse=True)[:20]
    assert all(summed[tuple(pair["experts"])] == pair["count"] for pair in frequent)
    strongest = document["cooccurrence"]["strongest_pairs"]
    assert [e["lift"] for e in strongest] == sorted((e["lift"] for e in strongest), reverse=True)
    assert found[0] in [{key: e[key] for key in ("experts", "count", "lift")} for e in strongest]


def test_transitions(document: dict[str, Any], trace: RoutingTrace) -> None:
    assert document["transitions"]["per_layer"][0] is None
    section = document["transitions"]["per_layer"][2]
    before, after = tokens_of(trace, None, 1), tokens_of(trace, None, 2)
    assert section["tokens"] == len(before) == 760
    table = np.zeros((24, 24))
    for a, b in zip(before, after, strict=True):
        for x in a["ids"]:
            for y in b["ids"]:
                table[x, y] += 1
    p = table / table.sum()
    independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    some = p > 0
    close(section["mutual_information_bits"], (p[some] * np.log2(p[some] / independent[some])).sum())
    counts = loads(before)
    for expert in range(24):
        best = np.sort(table[expert])[::-1][: len(section["top"][expert])]
        close([chance for _, chance in section["top"][expert]], best / max(counts[expert], 1))


def test_drift(document: dict[str, Any], trace: RoutingTrace) -> None:
    section = document["drift"]["decode"]
    tokens = tokens_of(trace, 1, 0)
    p, q = (loads(part) / (3 * len(part)) for part in (tokens[: 19 * 16], tokens[19 * 16 :]))
    middle = (p + q) / 2
    parts = [np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])) for x in (p, q)]
    close(section["per_layer"][0], sum(parts) / 2)
    assert section["per_layer"][0] > section["noise"][0]  # each request has its own topic


def test_cache(document: dict[str, Any], profile: RoutingProfile) -> None:
    section = document["cache"]
    assert (section["bank_experts"], section["token_cycle_experts"]) == (96, 12)
    assert section["bank_bytes"] == 96 * BYTES
    assert section["phase"] == "decode"
    assert {curve["policy"] for curve in section["curves"]} == {"lru", "decayed-lfu", "belady", "static"}
    assert profile.hit_rates is not None
    for curve in section["curves"]:
        assert curve["bytes"] == [size * BYTES for size in curve["capacity"]]
        close(curve["hit_rate"], profile.hit_rates.curve(curve["policy"]).hit_rate)
        assert all(a <= b + 0.02 for a, b in zip(curve["hit_rate"], curve["hit_rate"][1:], strict=False))
    for target in section["targets"]:
        assert target["bytes"] == target["capacity"] * BYTES
        close(target["share"], target["capacity"] / 96)


@pytest.mark.parametrize("phase", range(2))
def test_distances_of_the_whole_run(document: dict[str, Any], trace: RoutingTrace, phase: int) -> None:
    section = document["cache"]["whole_run"][PHASES[phase]]
    stack: list[tuple[int, int]] = []
    distances: list[int] = []
    for call in range(trace.num_calls):
        ids = trace.experts[trace.offsets[call] : trace.offsets[call + 1]].tolist()
        keys = list(dict.fromkeys((int(trace.layers[call]), expert) for expert in ids))
        if trace.phases[call] == phase:
            distances += [stack.index(key) if key in stack else -1 for key in keys]
        for key in keys:
            stack = [key, *(other for other in stack if other != key)]
    assert section["lookups"] == len(distances)
    assert section["first_uses"] == distances.count(-1)
    edges = [*section["distance_edges"], 10**9]
    for low, high, count in zip(edges[:-1], edges[1:], section["distance_counts"], strict=True):
        assert count == sum(low <= distance < high for distance in distances)
    for capacity, rate in zip(section["capacity"], section["lru_hit_rate"], strict=True):
        close(rate, sum(0 <= distance < capacity for distance in distances) / len(distances))


def test_predictors(document: dict[str, Any], profile: RoutingProfile) -> None:
    section = document["predictors"]
    assert section["budgets"] == [3, 6]
    assert len(section["scores"]) == 10
    close([s["recall"] for s in section["scores"]], [s.recall for s in profile.scores])
    assert document["predictability"]["per_layer_from_previous"][0] is None


def test_plain_values() -> None:
    values = {
        1: np.float32(1 / 3),
        "b": [np.int64(4), float("nan"), np.inf],
        "c": np.array([[1, 2]]),
        "d": None,
        "e": True,
    }
    assert plain(values) == {"1": 0.333333, "b": [4, None, None], "c": [[1, 2]], "d": None, "e": True}


def test_saved_profiles_come_back(tmp_path: Path, profile: RoutingProfile, document: dict[str, Any]) -> None:
    path = tmp_path / "new" / "profile.npz"
    profile.save(path)
    assert RoutingProfile.is_profile(path)
    assert RoutingProfile.load(path).document() == document
    profile.save_json(tmp_path / "json" / "profile.json")
    assert json.loads((tmp_path / "json" / "profile.json").read_text()) == document


def test_another_file_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_text("no zip")
    assert not RoutingProfile.is_profile(path)
    with pytest.raises(InvalidInputError, match="is not a profile"):
        RoutingProfile.load(path)


def test_merged_profiles(trace: RoutingTrace, profile: RoutingProfile) -> None:
    parts = [profile_trace(trace.select(trace.requests // 2 == half), source=str(half)) for half in range(2)]
    merged = parts[0].merge(parts[1])
    close(merged.document()["maps"]["all"]["share"], profile.document()["maps"]["all"]["share"])
    assert [each.entropy for each in merged.layers] == [each.entropy for each in profile.layers]
    assert merged.source == "0; 1"
    other = simulate_routing(KnownModel("x", 4, 0, 24, 3, 64, 64), 10)
    with pytest.raises(InvalidInputError, match="merge runs of one model"):
        merged.merge(profile_trace(other))


def test_comparing_runs(trace: RoutingTrace) -> None:
    def run(seed: int, requests: slice) -> RoutingProfile:
        drawn = simulate_routing(MODEL, 600, prompt_tokens=40, request_tokens=150, seed=seed)
        return profile_trace(drawn.select(np.isin(drawn.requests, np.arange(4)[requests])))

    same, other = compare(run(5, slice(0, 4)), run(5, slice(0, 4))), compare(run(5, slice(0, 4)), run(6, slice(0, 4)))
    np.testing.assert_allclose(same.divergence, 0, atol=1e-12)
    assert (same.common_top == 1).all()
    assert not same.drifted.any()
    assert other.drifted.all()
    assert (other.carried_over < other.own).all()
    with pytest.raises(InvalidInputError, match="compare one model"):
        compare(run(5, slice(0, 1)), profile_trace(simulate_routing("mixtral", 3)))


def test_the_carried_over_share() -> None:
    first, second = MoERoutingProfiler(4, 1, top_k=1), MoERoutingProfiler(4, 1, top_k=1)
    first.record_routing(0, [[0]] * 50 + [[1]] * 40 + [[2]] * 10)
    second.record_routing(0, [[0]] * 30 + [[3]] * 60 + [[1]] * 10)
    drift = compare(first.profile(), second.profile())
    assert drift.common_top[0] == 0.5  # 0 and 1 against 3 and 0
    assert drift.carried_over[0] == pytest.approx(0.4)
    assert drift.own[0] == pytest.approx(0.9)
