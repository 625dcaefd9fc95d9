"""A decoder's logits are the same bytes on every rung: mode, budget, policy, reading ahead, threads, ways to read."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_moe.cache import CacheEngine, engine
from onnx_moe.generation import DecoderSession
from tests.cache.decoder import save_decoder
from tests.residency.model import Stack, session

STACK = Stack(layers=4, experts=16, top_k=2, next_gates=True)
PROMPT, TOKENS = [5, 17, 3, 80, 41, 9], 24
#: Experts that a token uses; beside them a slot for what bypasses the cache, and two for what is read ahead.
CYCLE = STACK.layers * STACK.top_k
SIGNALS = ["off", "repeat", "history", "recency", "cross-layer", "next-gate"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("ladder"), STACK)


@dataclass(frozen=True)
class Text:
    """What a session wrote, greedily. logits: a hash of all of them."""

    tokens: list[int]
    logits: str
    statistics: dict[str, Any]


def write(
    path: Path, threads: int = 1, between: Callable[[CacheEngine, int], None] | None = None, **entries: object
) -> Text:
    """between(engine, step) is called after each step."""
    live = session(path, threads, **entries)
    steps = DecoderSession(live)
    cache, pending, tokens, digest = steps.empty_cache(1), PROMPT, [], hashlib.sha256()
    for step in range(TOKENS):
        mask = np.ones((1, cache.tokens + len(pending)), np.int64)
        logits, cache = steps.step(np.array([pending], np.int64), mask, cache)
        digest.update(np.ascontiguousarray(logits))
        pending = [int(logits[0, -1].argmax())]
        tokens += pending
        if between:
            between(engine(live), step)
    return Text(tokens, digest.hexdigest(), engine(live).statistics())


@pytest.fixture(scope="module")
def mapped(decoder: Path) -> Text:
    text = write(decoder, residency="mapped")
    assert len(set(text.tokens)) > TOKENS // 3, "a text that repeats itself compares little"
    return text


@pytest.fixture(scope="module")
def slot_bytes(decoder: Path) -> int:
    return int(write(decoder, residency="pool", cache_bytes="100%").statistics["slot_bytes"])


@pytest.mark.parametrize("residency", ["mapped", "pagecache", "auto"])
@pytest.mark.parametrize("threads", [1, 2])
def test_modes_that_leave_experts_in_place(decoder: Path, mapped: Text, residency: str, threads: int) -> None:
    text = write(decoder, threads, residency=residency)
    assert (text.tokens, text.logits) == (mapped.tokens, mapped.logits)


@pytest.mark.parametrize("prefetch", SIGNALS)
@pytest.mark.parametrize("budget", ["cycle", "25%", "50%", "100%"])
def test_pool(decoder: Path, mapped: Text, slot_bytes: int, budget: str, prefetch: str) -> None:
    least = CYCLE + 1 + (2 if prefetch != "off" else 0)
    entries: dict[str, object] = {"cache_bytes": least * slot_bytes if budget == "cycle" else budget}
    if prefetch != "off":
        entries |= {"prefetch": prefetch, "prefetch_precision": 0}
    issued = 0
    for policy, direct_io, threads in itertools.product(("lru", "decayed-lfu"), ("on", "off"), (1, 2)):
        rung = {**entries, "cache_policy": policy, "direct_io": direct_io, "io_threads": threads}
        text = write(decoder, threads, residency="pool", **rung)
        assert (text.tokens, text.logits) == (mapped.tokens, mapped.logits), (rung, threads)
        assert text.statistics["direct_io"] == (direct_io == "on")
        assert (text.statistics["evictions"] > 0) == (budget != "100%")
        issued += text.statistics.get("prefetch", {}).get("issued", 0)
    # Where a layer keeps just what its last call used, `repeat` has nothing to read.
    idle = prefetch == "off" or budget == "100%" or (prefetch, budget) == ("repeat", "cycle")
    assert (issued > 0) == (not idle)


@pytest.mark.parametrize("prefetch", ["off", "next-gate"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_budget_that_changes_on_the_way(
    decoder: Path, mapped: Text, slot_bytes: int, threads: int, prefetch: str
) -> None:
    budgets = ["100%", (CYCLE + 3) * slot_bytes, "60%", "30%"]
    entries: dict[str, object] = {} if prefetch == "off" else {"prefetch": prefetch, "prefetch_precision": 0}

    def change(live: CacheEngine, step: int) -> None:
        live.set_budget(budgets[step % len(budgets)])

    text = write(decoder, threads, change, residency="pool", cache_bytes="50%", **entries)
    assert (text.tokens, text.logits) == (mapped.tokens, mapped.logits)
    assert text.statistics["evictions"] > 0


def test_a_byte_less_than_a_cycle_is_refused(decoder: Path, slot_bytes: int) -> None:
    needed = (CYCLE + 1) * slot_bytes
    with pytest.raises(Exception, match=f"set onnx_moe.cache_bytes to at least {needed} "):
        write(decoder, residency="pool", cache_bytes=needed - 1)
