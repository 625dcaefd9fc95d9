"""What the figures of each section say, in a sentence or two, and the numbers at the top of the page."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_moe.routing.report.numbers import byte_size, counted, mean, percent
from onnx_moe.routing.report.reading import (
    CONTROLS,
    POLICIES,
    Document,
    curves,
    hit_rate,
    memory,
    online_policy,
    phase_of,
    scores,
    target,
)


def cache(document: Document) -> str:
    """How far a cache comes with a quarter of the experts, and how far any could."""
    known = curves(document)
    capacity = document["cache"]["bank_experts"] // 4
    rates = {name: percent(hit_rate(curve, capacity)) for name, curve in known.items()}
    online = " and ".join(f"{POLICIES[name]} {rates[name]}" for name in ("decayed-lfu", "lru") if name in known)
    bound = f", against {rates['belady']} for a cache that knew the future" if "belady" in known else ""
    least = memory(document, document["cache"]["least_experts"])
    return (
        f"With {memory(document, capacity)} in memory, {online} of lookups hit{bound}. "
        f"Less than {least}, what one token uses in all layers and a slot to read into, is refused by the plugin. Of "
        "more, a sixteenth, at most eight slots, is for experts that pass the cache by, as it is here."
    )


def whole_run(document: Document) -> str | None:
    """What LRU would hit over every lookup of the run, of which the curves replay a stretch."""
    section = document["cache"]
    run = (section.get("whole_run") or {}).get(section["phase"])
    if not run or not run["capacity"]:
        return None
    capacity = section["bank_experts"] // 4
    rate = percent(np.interp(capacity, run["capacity"], run["lru_hit_rate"]))
    return (
        f"Over all {run['lookups']:,} {section['phase']} lookups of the run, plain LRU with "
        f"{memory(document, capacity)} hits {rate}."
    )


def experts(document: Document) -> str:
    """The busiest expert, and how many are never chosen."""
    maps = document["maps"]
    share = np.array((maps.get("all") or maps[phase_of(maps)])["share"], float)
    layer, expert = np.unravel_index(int(np.nanargmax(share)), share.shape)
    busiest = share[layer, expert]
    return (
        f"The busiest is expert {expert} of layer {layer}, with {percent(busiest)} of its layer’s selections, "
        f"{busiest * share.shape[1]:.1f} times an even share. "
        f"{int((share == 0).sum()):,} of {share.size:,} experts were never chosen."
    )


def concentration(document: Document) -> str:
    """What the top quarter of the experts covers, on the same tokens and held out."""
    phase = phase_of(document["concentration"])
    section = document["concentration"][phase]
    grid, curve = section["experts_percent"], section["all"]
    same = percent(np.interp(25, grid, curve["in_sample"]) / 100)
    sentence = f"The most chosen quarter of the experts takes {same} of {phase} selections"
    if not curve["held_out"]:
        return f"{sentence}."
    later = percent(np.interp(25, grid, curve["held_out"]) / 100)
    return f"{sentence}; chosen by the first half of the run, it takes {later} of the second."


def layers(document: Document) -> str:
    """The range of entropy, and the least even layer."""
    rows = [row for row in document["per_layer"] if row["entropy"] is not None]
    least, most = (choose(rows, key=lambda row: row["entropy"]) for choose in (min, max))
    active = mean(row["active_experts"] for row in rows)
    return (
        f"Entropy runs from {least['entropy']:.2f} (layer {least['layer']}, the least even) to {most['entropy']:.2f} "
        f"(layer {most['layer']}); 1 is even. On average {active:.0f} of {document['model']['num_experts']} experts "
        "are in use in a layer."
    )


def time(document: Document) -> str:
    """Overlap with the token before, and how much of it is popularity."""
    phase = phase_of(document["time"])
    section = document["time"][phase]
    before, back = (percent(mean(row[column] for row in section["overlap"])) for column in (0, -1))
    medians = [median for median in section["reuse_median"] if median is not None]
    within = counted(round(float(np.median(medians))), "token") if medians else None
    return (
        f"A {phase} token chooses {before} of the experts that the token before chose, "
        f"and {back} of those {section['lags'][-1]} tokens back; "
        f"popularity alone would give {percent(mean(section['chance']))}. "
        f"{mean(section['new_experts']):.1f} of a token’s {document['model']['top_k']} experts in a layer were not "
        "the last token’s." + (f" In the middle layer, half of all reuses come within {within}." if within else "")
    )


def relations(document: Document) -> str:
    """The strongest links between layers and within a token."""
    links = [link for link in (document.get("transitions") or {}).get("per_layer", []) if link]
    sentences = []
    if links:
        link = max(links, key=lambda one: one["mutual_information_bits"])
        sentences.append(
            f"Layer {link['from_layer']} tells most about the next: {link['mutual_information_bits']:.2f} bits about "
            f"what layer {link['layer']} chooses."
        )
    if document["cooccurrence"]["strongest_pairs"]:
        pair = max(document["cooccurrence"]["strongest_pairs"], key=lambda one: one["lift"])
        first, second = pair["experts"]
        sentences.append(
            f"Experts {first} and {second} of layer {pair['layer']} serve the same token {pair['lift']:.1f} times "
            "as often as chance would have it."
        )
    return " ".join(sentences)


def predictors(document: Document) -> str:
    """The best predictor beside what popularity alone finds."""
    known = scores(document)
    name, best = next(
        ((name, score) for name, score in known.items() if name not in CONTROLS), next(iter(known.items()))
    )
    guesses = "1 guess" if best["budget"] == 1 else f"{best['budget']} guesses"
    sentence = f"With {guesses} a layer, {name} finds {percent(best['recall'])} of a token’s experts"
    if name == "popularity" or "popularity" not in known:
        return f"{sentence}."
    return f"{sentence}; popularity alone finds {percent(known['popularity']['recall'])}."


def balance(document: Document) -> str:
    """The mean load-balancing value and the window that is furthest from balance."""
    phase = phase_of(document["balance"])
    section = document["balance"][phase]
    average = f"Over all {phase} tokens the value is {mean(section['per_layer']):.2f} on average (1 is balanced)."
    windows = np.array(section["windows"], float)
    if not windows.size:
        return average
    window, layer = np.unravel_index(int(np.nanargmax(windows)), windows.shape)
    return f"{average} Furthest from balance is layer {layer} in window {window}, with {windows[window, layer]:.2f}."


def key_figures(document: Document) -> list[tuple[str, str]]:
    """(value, what it is) of the figures that a reader asks for first."""
    summary = document["summary"]
    known = {
        "of a token’s experts served the token before it": _formatted(summary["avg_overlap_lag1"], percent),
        "load-balancing value, mean of layers (1 is even)": _formatted(summary["avg_load_balancing"], "{:.2f}".format),
        "entropy of the load, mean of layers (1 is even)": _formatted(summary["avg_entropy"], "{:.2f}".format),
    }
    return _cache_figures(document) + [(value, name) for name, value in known.items() if value]


def _formatted(value: float | None, write: Callable[[float], str]) -> str | None:
    return None if value is None else write(value)


def _cache_figures(document: Document) -> list[tuple[str, str]]:
    policy = online_policy(document)
    if policy is None:
        return []
    section, advised = document["cache"], target(document, 0.9)
    size, cycle = section["expert_bytes"], section["token_cycle_experts"]
    quarter = hit_rate(curves(document)[policy], section["bank_experts"] / 4)
    figures = [(percent(quarter), f"hits with a quarter of the experts in memory ({POLICIES[policy]})")]
    if advised and size:
        total = byte_size(section["bank_experts"] * size)
        figures.append((byte_size(advised["capacity"] * size), f"memory for 90 % hits, of {total} in all"))
    token_cycle = byte_size(cycle * size) if size else f"{cycle:,} experts"
    return [*figures, (token_cycle, "token cycle: what one token uses in all layers")]
