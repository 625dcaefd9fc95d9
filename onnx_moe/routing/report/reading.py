"""What several parts of a report ask of a profile's document."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_moe.routing.report.numbers import byte_size, counted, percent

Document = dict[str, Any]

#: How the report calls the policies.
POLICIES = {"lru": "LRU", "decayed-lfu": "decayed LFU", "belady": "Belady", "static": "pinning"}


#: Predictors that others are measured against, not to be followed: chance.
CONTROLS = ("random",)


def phase_of(section: Document | None) -> str | None:
    """The phase that a section is read for: decode where it has tokens, for that is what a cache has to serve."""
    known = [phase for phase in ("decode", "prefill") if section and section.get(phase)]
    return known[0] if known else None


def curves(document: Document) -> dict[str, Document]:
    """Hit-rate curves by policy."""
    return {curve["policy"]: curve for curve in (document.get("cache") or {}).get("curves", [])}


def hit_rate(curve: Document, capacity: float) -> float:
    """A curve at a capacity, on the line between two simulated ones."""
    return float(np.interp(capacity, curve["capacity"], curve["hit_rate"]))


def online_policy(document: Document) -> str | None:
    """The policy that a cache can follow (it does not know the future) and that the advised budgets are for."""
    known = curves(document)
    return next((policy for policy in ("decayed-lfu", "lru") if policy in known), None)


def target(document: Document, rate: float) -> Document | None:
    """The advised budget for a hit rate, where one is reachable."""
    targets = (document.get("cache") or {}).get("targets", [])
    return next((one for one in targets if abs(one["hit_rate"] - rate) < 1e-6 and one["capacity"]), None)


def memory(document: Document, capacity: int) -> str:
    """Experts as memory where their size is known: 12.3 GB (25 % of the experts)."""
    cache = document["cache"]
    share = percent(capacity / cache["bank_experts"])
    if cache["expert_bytes"]:
        return f"{byte_size(capacity * cache['expert_bytes'])} ({share} of the experts)"
    return f"{counted(capacity, 'expert')} ({share} of all)"


def scores(document: Document) -> dict[str, Document]:
    """Predictors' scores at k guesses, by name, best first."""
    predictors = document.get("predictors") or {}
    budget = predictors.get("budgets", [0])[0]
    first = [score for score in predictors.get("scores", []) if score["budget"] == budget]
    return {score["predictor"]: score for score in sorted(first, key=lambda score: -score["recall"])}
