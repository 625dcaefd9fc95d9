"""The figures that the page shows, computed again from the raw trace by naive loops."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from onnx_moe.routing.profile import profile_trace
from onnx_moe.routing.report import write_report
from tests.routing_report.browser import CHROMIUM, chromium
from tests.routing_report.raw_trace import EXPERTS, LAYERS, NEW, TOKENS, TOP_K, trace

EXPERT_BYTES = 1_000_000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    profile = profile_trace(trace(), name="raw", expert_bytes=EXPERT_BYTES, source="test")
    return write_report(profile.document(), tmp_path_factory.mktemp("figures") / "report.html")


@pytest.fixture(scope="module")
def shown(page: Path) -> dict:
    """What the page draws."""
    return json.loads(page.read_text().split('id="profile">')[1].split("</script>")[0])


def chosen(layer: int, phase: int | None = None) -> list[list[int]]:
    return [ids for its_phase, _, its_layer, ids, _ in TOKENS if its_layer == layer and phase in (None, its_phase)]


def counts(layer: int, phase: int | None = None) -> Counter[int]:
    return Counter(expert for ids in chosen(layer, phase) for expert in ids)


@pytest.mark.parametrize(("name", "phase"), [("prefill", 0), ("decode", 1), ("all", None)])
def test_heat_maps(shown, name, phase):
    for layer in range(LAYERS):
        found, total = counts(layer, phase), sum(counts(layer, phase).values())
        assert shown["maps"][name]["share"][layer] == pytest.approx(
            [found[e] / total for e in range(EXPERTS)], rel=1e-5
        )
        mass: Counter[int] = Counter()
        for its_phase, _, its_layer, ids, weights in TOKENS:
            if its_layer == layer and phase in (None, its_phase):
                for expert, weight in zip(ids, weights, strict=True):
                    mass[expert] += weight
        expected = [mass[expert] / sum(mass.values()) for expert in range(EXPERTS)]
        assert shown["maps"][name]["mass"][layer] == pytest.approx(expected, rel=1e-5)


def test_evenness_of_layers(shown):
    for layer, row in enumerate(shown["per_layer"]):
        loads = [counts(layer)[expert] for expert in range(EXPERTS)]
        total, average = sum(loads), sum(loads) / EXPERTS
        entropy = -sum(n / total * math.log(n / total) for n in loads if n) / math.log(EXPERTS)
        gini = sum(abs(a - b) for a in loads for b in loads) / (2 * EXPERTS * total)
        deviation = math.sqrt(sum((n - average) ** 2 for n in loads) / EXPERTS)
        assert row["entropy"] == pytest.approx(entropy, rel=1e-5)
        assert row["gini"] == pytest.approx(gini, rel=1e-5)
        assert row["load_balance_cv_all"] == pytest.approx(deviation / average, rel=1e-5)
        assert row["max_over_mean"] == pytest.approx(max(loads) / average, rel=1e-5)
        assert row["active_experts"] == sum(n > 0 for n in loads)
        ranked, needed = sorted(loads, reverse=True), 0
        while sum(ranked[:needed]) < 0.8 * total:
            needed += 1
        assert row["experts_for"]["80"] == needed
    assert shown["per_layer"][0]["dead_experts"] == 1


def test_concentration(shown):
    section = shown["concentration"]["decode"]
    for layer in range(LAYERS):
        ranked = sorted((counts(layer, 1)[expert] for expert in range(EXPERTS)), reverse=True)
        covered = np.concatenate([[0], np.cumsum(ranked)]) / sum(ranked) * 100
        expected = np.interp(np.array(section["experts_percent"]) / 100 * EXPERTS, np.arange(EXPERTS + 1), covered)
        assert section["per_layer"][layer]["in_sample"] == pytest.approx(expected, rel=1e-4)


def test_overlap_by_lag(shown):
    for layer in range(LAYERS):
        for lag in (1, 2, 16):
            shared = pairs = 0
            for request in range(2):
                run = [
                    (phase, set(ids))
                    for phase, its_request, at, ids, _ in TOKENS
                    if (its_request, at) == (request, layer)
                ]
                for (_, before), (phase, now) in zip(run, run[lag:], strict=False):
                    shared, pairs = shared + phase * len(now & before), pairs + phase
            expected = shared / (pairs * TOP_K)
            assert shown["time"]["decode"]["overlap"][layer][lag - 1] == pytest.approx(expected, rel=1e-5)


def test_transitions(shown):
    for layer in range(1, LAYERS):
        before, here = chosen(layer - 1), chosen(layer)
        for expert, row in enumerate(shown["transitions"]["per_layer"][layer]["top"]):
            followers = [ids for source, ids in zip(before, here, strict=True) if expert in source]
            for target, probability in row:
                expected = sum(target in ids for ids in followers) / len(followers)
                assert probability == pytest.approx(expected, rel=1e-5)


def test_cooccurrence(shown):
    for pair in shown["cooccurrence"]["strongest_pairs"]:
        rows = [set(ids) for ids in chosen(pair["layer"])]
        first, second = pair["experts"]
        together, alone = (
            sum({first, second} <= row for row in rows),
            [sum(e in row for row in rows) for e in (first, second)],
        )
        assert pair["count"] == together
        assert pair["lift"] == pytest.approx(together * len(rows) / (alone[0] * alone[1]), rel=1e-5)


def test_load_balancing(shown):
    section = shown["balance"]["decode"]
    assert section["basis"] == "selected_weights"
    for layer in range(LAYERS):
        found, total = counts(layer, 1), sum(counts(layer, 1).values())
        mass = [0.0] * EXPERTS
        for phase, _, at, ids, weights in TOKENS:
            if (phase, at) == (1, layer):
                for expert, weight in zip(ids, weights, strict=True):
                    mass[expert] += weight
        expected = EXPERTS * sum(found[e] / total * mass[e] / sum(mass) for e in range(EXPERTS))
        assert section["per_layer"][layer] == pytest.approx(expected, rel=1e-4)


def lru_hits(calls: list[tuple[int, list[int]]], capacity: int) -> list[bool]:
    """Whether each lookup hits: the least recently used expert leaves, of the layer or of those above their floor."""
    fair = capacity // LAYERS
    floor = 2 * TOP_K if fair >= 2 * TOP_K else min(TOP_K, fair)
    kept: dict[tuple[int, int], int] = {}
    hits = []
    for now, (layer, ids) in enumerate(calls):
        wanted = [(layer, expert) for expert in ids]
        hits += [key in kept for key in wanted]
        kept |= {key: TOP_K * now + slot for slot, key in enumerate(wanted) if key in kept}
        for slot, key in enumerate(wanted):
            if key in kept:
                continue
            if len(kept) == capacity:
                held = Counter(at for at, _ in kept)
                free = [other for other in kept if other not in wanted]
                may_go = [other for other in free if other[0] == layer or held[other[0]] > floor]
                del kept[min(may_go or free, key=kept.__getitem__)]
            kept[key] = TOP_K * now + slot
    return hits


def test_hit_rates_of_lru(shown):
    cache = shown["cache"]
    assert (cache["phase"], cache["simulated_tokens"], cache["token_cycle_experts"]) == (
        "decode",
        2 * NEW,
        LAYERS * TOP_K,
    )
    curve = next(one for one in cache["curves"] if one["policy"] == "lru")
    decoded = [(at, ids) for phase, _, at, ids, _ in TOKENS if phase == 1]
    assert len(curve["capacity"]) > 5
    for capacity, rate in zip(curve["capacity"], curve["hit_rate"], strict=True):
        # Of the slots, a sixteenth is for experts that pass the cache by; with all experts in memory, none.
        slots = capacity - max(capacity // 16, 1) if capacity < LAYERS * EXPERTS else capacity
        counted = lru_hits(decoded, slots)[cache["warmup_tokens"] * LAYERS * TOP_K :]
        assert rate == pytest.approx(sum(counted) / len(counted), rel=1e-5), capacity


DECODED = [(layer, ids) for phase, _, layer, ids, _ in TOKENS if phase == 1]


def decayed_lfu_hits(calls: list[tuple[int, list[int]]], capacity: int) -> list[bool]:
    """Who leaves has the least Σ 0.95^(its layer's calls since a use), then the least recent use."""
    fair = capacity // LAYERS
    floor = 2 * TOP_K if fair >= 2 * TOP_K else min(TOP_K, fair)
    visits = [0] * LAYERS
    uses: dict[tuple[int, int], list[tuple[int, int]]] = {}
    kept: set[tuple[int, int]] = set()
    hits = []
    for now, (layer, ids) in enumerate(calls):
        visits[layer] += 1
        wanted = [(layer, expert) for expert in ids]
        hits += [key in kept for key in wanted]
        for slot, key in enumerate(wanted):
            uses.setdefault(key, []).append((visits[layer], TOP_K * now + slot))

        def worth(key: tuple[int, int]) -> tuple[float, int]:
            ages = sorted(visits[key[0]] - visit for visit, _ in uses[key])
            return math.fsum(0.95**age for age in ages), uses[key][-1][1]

        missing = [key for key in wanted if key not in kept]
        kept |= set(wanted) & kept
        for key in missing:
            if len(kept) == capacity:
                held = Counter(at for at, _ in kept)
                free = [other for other in kept if other not in wanted]
                may_go = [other for other in free if other[0] == layer or held[other[0]] > floor]
                kept.remove(min(may_go or free, key=worth))
            kept.add(key)
    return hits


def belady_hits(calls: list[tuple[int, list[int]]], capacity: int) -> list[bool]:
    """Starts with the experts that are needed first; who leaves is needed last."""
    needs: dict[tuple[int, int], list[int]] = {}
    for now, (layer, ids) in enumerate(calls):
        for expert in ids:
            needs.setdefault((layer, expert), []).append(now)
    kept = set(list(needs)[:capacity])
    hits = []
    for now, (layer, ids) in enumerate(calls):
        wanted = [(layer, expert) for expert in ids]
        hits += [key in kept for key in wanted]
        for key in wanted:
            if key not in kept and len(kept) == capacity:
                free = [other for other in kept if other not in wanted]
                kept.remove(max(free, key=lambda other: next((need for need in needs[other] if need > now), 10**9)))
            kept.add(key)
    return hits


def test_hit_rates_of_the_other_policies(shown):
    cache = shown["cache"]
    curves = {one["policy"]: one for one in cache["curves"]}
    first = cache["warmup_tokens"] * LAYERS
    used = Counter((layer, expert) for layer, ids in DECODED[:first] for expert in ids)
    ranked = sorted(((layer, e) for layer in range(LAYERS) for e in range(EXPERTS)), key=lambda key: (-used[key], key))
    later = [(layer, expert) for layer, ids in DECODED[first:] for expert in ids]
    for at in (0, 2, -2):
        capacity = curves["lru"]["capacity"][at]
        slots = capacity - max(capacity // 16, 1)
        counted = decayed_lfu_hits(DECODED, slots)[first * TOP_K :]
        assert curves["decayed-lfu"]["hit_rate"][at] == pytest.approx(sum(counted) / len(counted), rel=1e-5)
        best = belady_hits(DECODED[first:], capacity)
        assert curves["belady"]["hit_rate"][at] == pytest.approx(sum(best) / len(best), rel=1e-5)
        pinned = set(ranked[:capacity])
        share = sum(key in pinned for key in later) / len(later)
        assert curves["static"]["hit_rate"][at] == pytest.approx(share, rel=1e-5)


def test_predictors_scores(shown):
    """Of the decoded tokens, which are all scored: the last token's experts, and the most used so far."""
    assert shown["predictors"]["sampled_tokens"] == 2 * NEW
    scores = {(score["predictor"], score["budget"]): score for score in shown["predictors"]["scores"]}
    for budget in (TOP_K, 2 * TOP_K):
        right = {"repeat": 0, "popularity": 0}
        last: dict[tuple[int, int], list[int]] = {}
        popular = [[0] * EXPERTS for _ in range(LAYERS)]
        total = 0
        for phase, request, layer, ids, _ in TOKENS:
            if phase == 0:
                continue
            ranked = sorted(range(EXPERTS), key=lambda e, layer=layer: (-popular[layer][e], e))[:budget]
            right["popularity"] += len(set(ranked) & set(ids))
            right["repeat"] += len(set(last.get((request, layer), [])[:budget]) & set(ids))
            total += len(ids)
            last[request, layer] = ids
            for expert in ids:
                popular[layer][expert] += 1
        for name, count in right.items():
            assert scores[name, budget]["recall"] == pytest.approx(count / total, rel=1e-5)
            assert scores[name, budget]["precision"] <= 1


def test_hit_rates_of_lru_over_the_whole_run(shown):
    """Prompts pass through the cache, too, each layer's in one call; counted are the lookups of decoding."""
    calls: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, (phase, request, layer, ids, _) in enumerate(TOKENS):
        call = calls.setdefault((phase, request, layer, number * phase), [])
        call += [(layer, expert) for expert in ids if (layer, expert) not in call]
    run = shown["cache"]["whole_run"]["decode"]
    for capacity, rate in zip(run["capacity"], run["lru_hit_rate"], strict=True):
        recent: list[tuple[int, int]] = []
        hits = lookups = 0
        for (phase, *_), wanted in calls.items():
            hits += phase * sum(key in recent[-capacity:] for key in wanted)
            lookups += phase * len(wanted)
            recent = [*(key for key in recent if key not in wanted), *wanted]
        assert run["lookups"] == lookups
        assert rate == pytest.approx(hits / lookups, rel=1e-5), capacity


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium")
def test_what_the_reader_reads(page, tmp_path):
    """The text under the heat map and in the tables, from the trace alone."""
    with chromium(tmp_path / "browser") as browser:
        browser.open(page)
        browser.evaluate("document.querySelector('#expert-map .cells').focus()")
        browser.press("Home", "ArrowDown", "ArrowRight")
        found, total = counts(1, 1), sum(counts(1, 1).values())
        share = found[1] / total
        assert browser.text("#expert-map .reading").startswith(f"Layer 1, expert 1: {100 * share:.0f} % of the layer’s")
        first = max(range(EXPERTS), key=lambda e: counts(0, 1)[e])
        browser.open_tables()
        assert browser.text("#expert-table tbody td").startswith(f"{first} (")
        assert browser.problems() == []
