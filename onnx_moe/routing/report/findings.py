"""What the figures of each section say, in a sentence each, and the numbers at the top of the page."""

from __future__ import annotations

import numpy as np

from onnx_moe.routing.report.numbers import byte_size, counted, mean, percent
from onnx_moe.routing.report.reading import (
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

_QUARTER = 25


def cache(document: Document) -> str:
    """How far a cache comes with a quarter of the experts, and how far any could."""
    known, policy = curves(document), online_policy(document)
    capacity = document["cache"]["bank_experts"] // 4
    rates = [
        f"{POLICIES[name]} {percent(hit_rate(known[name], capacity))}" for name in ("decayed-lfu", "lru") if name in known
    ]
    bound = f", against {percent(hit_rate(known['belady'], capacity))} for a cache that knew the future" if "belady" in known else ""
    cycle = document["cache"]["token_cycle_experts"]
    return (
        f"With {memory(document, capacity)} in memory, {' and '.join(rates)} of lookups hit{bound}. "
        f"Everything left of {memory(document, cycle)}, what one token uses in all layers, is a cliff."
        if policy
        else "No policy was replayed."
    )


def experts(document: Document) -> str:
    """The busiest expert, and how many are never chosen."""
    maps = document["maps"]
    share = np.array((maps.get("all") or maps[phase_of(maps)])["share"], float)
    layer, expert = np.unravel_index(int(np.nanargmax(share)), share.shape)
    silent = int((share == 0).sum())
    return (
        f"The busiest is expert {expert} of layer {layer}, with {percent(share[layer, expert])} of its layer’s selections, "
        f"{share[layer, expert] * share.shape[1]:.1f} times an even share. "
        f"{silent:,} of {share.size:,} experts were never chosen."
    )


def concentration(document: Document) -> str:
    """What the top quarter of the experts covers, on the same tokens and held out."""
    phase = phase_of(document["concentration"])
    section = document["concentration"][phase]
    covered = {
        name: np.interp(_QUARTER, section["experts_percent"], section["all"][name]) / 100
        for name in ("in_sample", "held_out")
        if section["all"][name]
    }
    held_out = (
        f"; chosen by the first half of the run, they take {percent(covered['held_out'])} of the second"
        if "held_out" in covered
        else ""
    )
    return f"The most chosen quarter of the experts takes {percent(covered['in_sample'])} of {phase} selections{held_out}."


def layers(document: Document) -> str:
    """The range of entropy, and the least even layer."""
    rows = [row for row in document["per_layer"] if row["entropy"] is not None]
    least, most = (choose(rows, key=lambda row: row["entropy"]) for choose in (min, max))
    return (
        f"Entropy runs from {least['entropy']:.2f} (layer {least['layer']}, the least even) to {most['entropy']:.2f} "
        f"(layer {most['layer']}); 1 is even. On average {mean(row['active_experts'] for row in rows):.0f} of "
        f"{document['model']['num_experts']} experts are in use in a layer."
    )


def time(document: Document) -> str:
    """Overlap with the token before, and how much of it is popularity."""
    phase = phase_of(document["time"])
    section = document["time"][phase]
    first, last = (mean(row[column] for row in section["overlap"]) for column in (0, -1))
    return (
        f"A {phase} token chooses {percent(first)} of the experts that the token before chose, "
        f"{percent(last)} of those {section['lags'][-1]} tokens back; popularity alone would give {percent(mean(section['chance']))}. "
        f"In the median layer, half of all reuses come within {np.median([m for m in section['reuse_median'] if m is not None]):.0f} tokens."
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
    pairs = document["cooccurrence"]["top_pairs"]
    if pairs:
        pair = max(pairs, key=lambda one: one["lift"])
        sentences.append(
            f"Experts {pair['experts'][0]} and {pair['experts'][1]} of layer {pair['layer']} serve the same token "
            f"{pair['lift']:.1f} times as often as chance would have it."
        )
    return " ".join(sentences)


def predictors(document: Document) -> str:
    """The best predictor beside what popularity alone finds."""
    known = scores(document)
    name, best = next(iter(known.items()))
    beside = f"; popularity alone finds {percent(known['popularity']['recall'])}" if "popularity" in known and name != "popularity" else ""
    return f"With {counted(best['budget'], 'guess')[:-1] + 'es' if best['budget'] != 1 else '1 guess'} a layer, {name} finds {percent(best['recall'])} of a token’s experts{beside}."


def balance(document: Document) -> str:
    """The mean load-balancing value and the window that is furthest from balance."""
    phase = phase_of(document["balance"])
    section = document["balance"][phase]
    windows = np.array(section["windows"], float)
    window, layer = np.unravel_index(int(np.nanargmax(windows)), windows.shape)
    return (
        f"Over all {phase} tokens the value is {mean(section['per_layer']):.2f} on average (1 is balanced); the window furthest from "
        f"balance is number {window} of layer {layer}, with {windows[window, layer]:.2f}."
    )


def key_figures(document: Document) -> list[tuple[str, str]]:
    """(value, what it is) of the figures that a reader asks for first."""
    figures = []
    known, policy = curves(document), online_policy(document)
    if policy:
        section = document["cache"]
        quarter = hit_rate(known[policy], section["bank_experts"] / 4)
        figures.append((percent(quarter), f"hits with a quarter of the experts in memory ({POLICIES[policy]})"))
        one = target(document, 0.9)
        if one and section["expert_bytes"]:
            figures.append((byte_size(one["bytes"]), f"memory for 90 % hits, of {byte_size(section['bank_bytes'])} in all"))
        cycle = section["token_cycle_bytes"]
        figures.append((byte_size(cycle) if cycle else f"{section['token_cycle_experts']:,}", "token cycle: the experts that one token uses"))
    summary = document["summary"]
    if summary.get("avg_overlap_lag1") is not None:
        figures.append((percent(summary["avg_overlap_lag1"]), "of a token’s experts served the token before it"))
    if summary.get("avg_load_balancing") is not None:
        figures.append((f"{summary['avg_load_balancing']:.2f}", "load-balancing value, mean of layers (1 is balanced)"))
    if summary.get("avg_entropy") is not None:
        figures.append((f"{summary['avg_entropy']:.2f}", "entropy of the load, mean of layers (1 is even)"))
    return figures
