"""The report's paragraph of advice, in plain words, computed from the figures."""

from __future__ import annotations

from onnx_moe.routing.report.numbers import byte_size, counted, percent
from onnx_moe.routing.report.reading import (
    CONTROLS,
    POLICIES,
    Document,
    curves,
    hit_rate,
    memory,
    online_policy,
    scores,
    target,
)

#: Recall at k guesses from which reading ahead pays. Published: a next-layer gate with 72 to 89 % gains, history with
#: 18 to 51 % loses against reading on demand.
PREFETCH_RECALL = 0.7

#: Differences of hit rates below which policies are told to be alike.
ALIKE = 0.02

#: Tokens of the whole run below which it says little about others. A replay of a part of a long run is held to the
#: whole run's first uses instead: `MANY_FIRST_USES`.
FEW_TOKENS = 1000

#: Share of a run's lookups that are first uses of an expert, from which on they shape its hit rates.
MANY_FIRST_USES = 0.05


def advice(document: Document) -> str:
    """One paragraph: how much memory, which policy, whether to pin, prefetch or prune, and how far to trust it."""
    sentences = (_budget, _floor, _policy, _pinning, _prefetching, _pruning, _trust)
    return " ".join(filter(None, (sentence(document) for sentence in sentences)))


def _budget(document: Document) -> str | None:
    policy = online_policy(document)
    if policy is None:
        notes = document["recorded"]["notes"]
        return (
            notes[0]
            if notes
            else "Only counts are known, which say nothing about caches: record every call (onnx_moe.trace = full)."
        )
    wanted = {rate: target(document, rate) for rate in (0.8, 0.9, 0.95)}
    reached = {rate: one for rate, one in wanted.items() if one}
    if not reached:
        best = max(curves(document)[policy]["hit_rate"])
        return f"No budget brings hits to 80 % on this run: the most is {percent(best)}, the rest are first uses."
    rates = list(reached)
    advised = 0.9 if 0.9 in reached else rates[-1]
    size = memory(document, reached[advised]["capacity"])
    found = f"{percent(advised)} of lookups find their expert there with {POLICIES[policy]}"
    sentence = f"Keep {size} in memory, and {found}"
    others = [f"{percent(rate)} need {_size(document, reached[rate]['capacity'])}" for rate in rates if rate != advised]
    return sentence + (f"; {' and '.join(others)}." if others else ".")


def _size(document: Document, capacity: int) -> str:
    size = document["cache"]["expert_bytes"]
    return byte_size(capacity * size) if size else counted(capacity, "expert")


def _floor(document: Document) -> str | None:
    cache = document.get("cache")
    if not cache:
        return None
    return (
        f"Never give less than {memory(document, cache['least_experts'])}: a single token uses that much on its way "
        "through the layers, with a slot to read into, and below it the plugin refuses to start."
    )


def _policy(document: Document) -> str | None:
    known = curves(document)
    if not {"lru", "decayed-lfu"} <= known.keys():
        return None
    least = document["cache"]["least_experts"]
    gains = {
        capacity: hit_rate(known["decayed-lfu"], capacity) - hit_rate(known["lru"], capacity)
        for capacity in known["lru"]["capacity"]
        if capacity >= least
    }
    if not gains:
        return None
    capacity, gain = max(gains.items(), key=lambda item: abs(item[1]))
    if abs(gain) < ALIKE:
        return "LRU and decayed LFU are within two points of each other at every budget: either will do."
    better, worse = ("decayed-lfu", "lru") if gain > 0 else ("lru", "decayed-lfu")
    alike = [one for one in gains if all(abs(gains[more]) < ALIKE for more in gains if more >= one)]
    until = f"; from {_size(document, min(alike))} on they are alike" if alike else ""
    return (
        f"{_capital(POLICIES[better])} beats {POLICIES[worse]} by up to {100 * abs(gain):.0f} points, "
        f"with {_size(document, capacity)}{until}."
    )


def _pinning(document: Document) -> str | None:
    known, policy = curves(document), online_policy(document)
    if "static" not in known or policy is None:
        return None
    one = target(document, 0.9) or target(document, 0.8)
    capacity = one["capacity"] if one else document["cache"]["bank_experts"] // 4
    pinned, online = hit_rate(known["static"], capacity), hit_rate(known[policy], capacity)
    if pinned > online - ALIKE:
        return (
            f"Pinning the experts that the start of the run used most does as well ({percent(pinned)}): "
            "a saved profile is worth loading."
        )
    return (
        f"Do not pin what the start of a run uses most: with the same memory that reaches {percent(pinned)} where "
        f"{POLICIES[policy]} reaches {percent(online)}."
    )


def _prefetching(document: Document) -> str | None:
    known = {name: score for name, score in scores(document).items() if name not in CONTROLS}
    if not known:
        return None
    name, best = next(iter(known.items()))
    found = (
        f"From history alone the best predictor, {name}, finds {percent(best['recall'])} of the next experts "
        "with as many guesses as a token uses"
    )
    if best["recall"] >= PREFETCH_RECALL:
        return f"{found}: reading ahead is worth a try (onnx_moe.prefetch)."
    return (
        f"{found}, too few to read ahead for: most of what a cache misses would be guessed wrong. The next layer’s "
        "gate, which finds more in trained models, is not in this recording: try onnx_moe.prefetch = next-gate."
    )


def _pruning(document: Document) -> str | None:
    layers = document["per_layer"]
    dead, unseen = (sum(layer[key] for layer in layers) for key in ("dead_experts", "unseen_experts"))
    if dead:
        where = counted(sum(layer["dead_experts"] > 0 for layer in layers), "layer")
        return (
            f"{counted(dead, 'expert')} in {where} never served a token although at least ten uses were "
            "to be expected: check with other texts before removing any."
        )
    if unseen:
        verb = "was" if unseen == 1 else "were"
        return f"{counted(unseen, 'expert')} {verb} never chosen, but so few tokens prove nothing: remove none."
    return "Every expert was chosen: there is none to remove."


def _trust(document: Document) -> str | None:
    recorded, cache = document["recorded"], document.get("cache")
    doubts = []
    if recorded["source"].startswith("simulated"):
        doubts.append("the routing is simulated, not recorded")
    if recorded["dropped_calls"]:
        doubts.append(f"the recording lacks {counted(recorded['dropped_calls'], 'call')}")
    doubts += recorded["notes"] if cache and cache["curves"] else []
    if cache and cache["curves"]:
        tokens, first_uses = recorded["tokens"][cache["phase"]], _first_uses(cache)
        if tokens < FEW_TOKENS:
            doubts.append(f"the run has {counted(tokens, cache['phase'] + ' token')} only")
        elif first_uses > MANY_FIRST_USES:
            doubts.append(f"{percent(first_uses)} of the run’s lookups are first uses of an expert, which no cache has")
    doubts = [doubt[:1].lower() + doubt[1:].rstrip(".") for doubt in doubts]
    return f"Take this as a first guess: {'; '.join(doubts)}." if doubts else None


def _first_uses(cache: Document) -> float:
    run = (cache.get("whole_run") or {}).get(cache["phase"])
    return run["first_uses"] / run["lookups"] if run else 0.0


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
