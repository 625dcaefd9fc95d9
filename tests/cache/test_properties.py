"""The caches against a plain one of dictionary and list, and under threads."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from onnx_moe.cache import ExpertCache
from onnx_moe.errors import OnnxMoeError
from onnx_moe.prefetch import ExpertLRUCache

LAYERS, EXPERTS, MIB = 3, 4, 1 << 20
keys = st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1))
nbytes = st.integers(0, 40)


class PlainLru:
    """The rules, without a thought for speed: `order` from the least to the most recently used."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.values: dict[tuple[int, int], bytes] = {}
        self.order: list[tuple[int, int]] = []
        self.evictions = 0

    def size(self) -> int:
        return sum(len(value) for value in self.values.values())

    def drop(self, key: tuple[int, int]) -> None:
        del self.values[key]
        self.order.remove(key)

    def shrink_to(self, size: int) -> int:
        count = 0
        while self.size() > size:
            self.drop(self.order[0])
            count += 1
        self.evictions += count
        return count

    def get(self, key: tuple[int, int]) -> bytes | None:
        if key not in self.values:
            return None
        self.order.remove(key)
        self.order.append(key)
        return self.values[key]

    def put(self, key: tuple[int, int], value: bytes) -> bool:
        if key in self.values:
            self.drop(key)
        if len(value) > self.budget:
            return False
        self.shrink_to(self.budget - len(value))
        self.values[key] = value
        self.order.append(key)
        return True


class LruMachine(RuleBasedStateMachine):
    """Every operation of ExpertLRUCache beside the plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = PlainLru(100)
        self.cache = ExpertLRUCache(100 / MIB, LAYERS)
        self.lookups = self.hits = self.made = 0

    def value(self, size: int) -> bytes:
        self.made += 1
        return bytes([self.made % 256]) * size

    @rule(key=keys)
    def get(self, key: tuple[int, int]) -> None:
        expected = self.plain.get(key)
        self.lookups += 1
        self.hits += expected is not None
        assert self.cache.get(*key) is expected

    @rule(key=keys, size=nbytes)
    def put(self, key: tuple[int, int], size: int) -> None:
        value = self.value(size)
        assert self.cache.put(*key, value) == self.plain.put(key, value)

    @rule(key=keys, size=st.integers(0, 120))
    def get_or_load(self, key: tuple[int, int], size: int) -> None:
        value = self.value(size)
        expected = self.plain.get(key)
        self.lookups += 1
        self.hits += expected is not None
        if expected is None:
            self.plain.put(key, value)
        assert self.cache.get_or_load(*key, lambda: value) is (value if expected is None else expected)

    @rule(key=keys, size=nbytes)
    def prefetch(self, key: tuple[int, int], size: int) -> None:
        value = self.value(size)
        absent = key not in self.plain.values
        if absent:
            self.plain.put(key, value)
        assert self.cache.prefetch(*key, lambda: value) == absent

    @rule(layer=st.integers(0, LAYERS - 1), expert=st.none() | st.integers(0, EXPERTS - 1))
    def invalidate(self, layer: int, expert: int | None) -> None:
        gone = [key for key in self.plain.values if key[0] == layer and expert in (None, key[1])]
        for key in gone:
            self.plain.drop(key)
        assert self.cache.invalidate(layer, expert) == len(gone)

    @rule(size=st.integers(0, 150))
    def resize(self, size: int) -> None:
        self.plain.budget = size
        assert self.cache.resize(size / MIB) == self.plain.shrink_to(size)

    @rule()
    def clear(self) -> None:
        for key in list(self.plain.values):
            self.plain.drop(key)
        self.cache.clear()

    @invariant()
    def the_same_is_in_both(self) -> None:
        there = {
            (layer, expert)
            for layer in range(LAYERS)
            for expert in range(EXPERTS)
            if self.cache.contains(layer, expert)
        }
        assert there == set(self.plain.values)
        assert self.cache.num_entries == len(there)
        assert round(self.cache.size_mb * MIB) == self.plain.size() <= self.plain.budget
        counters = self.cache.get_stats()["global"]
        assert (counters["lookups"], counters["total_hits"]) == (self.lookups, self.hits)
        assert counters["total_evictions"] == self.plain.evictions


LruMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLru = LruMachine.TestCase


def run_threads(count: int, body: Callable[[int], None]) -> None:
    """Runs body(number) in threads at once; fails with what one of them raises, or when they do not end."""
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            body(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    if errors:
        raise errors[0]


def test_7_threads_get_their_own_experts_data() -> None:
    """4 threads × 10 gets."""
    cache = ExpertCache(8, 4)

    def body(number: int) -> None:
        for _ in range(10):
            made = cache.get_expert_tile(0, number, 0, lambda: np.full(64, number))
            assert (made == number).all()

    run_threads(4, body)
    counters = cache.get_stats()["global"]
    assert (counters["total_hits"], counters["total_misses"]) == (36, 4)


def test_threads_that_want_the_same_tile_make_it_once() -> None:
    cache = ExpertCache(8, 4)
    made: list[int] = []

    def make() -> Any:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return np.ones(16)

    results: list[Any] = []
    run_threads(8, lambda _: results.append(cache.get_expert_tile(0, 0, 0, make)))
    assert len(made) == 1
    assert all(result is results[0] for result in results)
    counters = cache.get_stats()["global"]
    assert counters["lookups"] == 8
    assert counters["joined"] == counters["total_misses"] - 1
    assert cache.size_mb == 128 / MIB


def test_a_maker_that_fails_fails_everybody_once_and_the_next_ask_tries_again() -> None:
    cache = ExpertCache(8, 4)
    errors: list[Exception] = []

    def make() -> Any:
        time.sleep(0.05)
        raise OSError("disk")

    def body(_: int) -> None:
        try:
            cache.get_expert_tile(0, 5, 0, make)
        except Exception as error:
            errors.append(error)

    run_threads(4, body)
    assert Counter(type(error) for error in errors) == {OSError: 1, OnnxMoeError: 3}
    told = next(str(error) for error in errors if isinstance(error, OnnxMoeError))
    assert told.startswith("tile 0 of expert 5 of layer 0 could not be made in another thread: OSError: disk.")
    assert cache.get_expert_tile(0, 5, 0, lambda: np.ones(1))[0] == 1


def test_a_maker_that_asks_for_its_own_tile_is_told_so() -> None:
    cache = ExpertCache(8, 4)

    def body(_: int) -> None:
        with pytest.raises(OnnxMoeError, match="tile 0 of expert 1 of layer 2 is wanted by a function that"):
            cache.get_expert_tile(2, 1, 0, lambda: cache.get_expert_tile(2, 1, 0, lambda: np.zeros(1)))

    run_threads(1, body)
    assert cache.get_expert_tile(2, 1, 0, lambda: np.ones(1))[0] == 1


def test_makers_that_wait_for_each_other_are_told_so() -> None:
    cache = ExpertCache(8, 4)
    both = threading.Barrier(2)
    errors: list[OnnxMoeError] = []

    def body(number: int) -> None:
        def make() -> Any:
            both.wait()
            return cache.get_expert_tile(0, 1 - number, 0, lambda: np.ones(1))

        try:
            cache.get_expert_tile(0, number, 0, make)
        except OnnxMoeError as error:
            errors.append(error)

    run_threads(2, body)
    assert any("must not ask the cache for each other's" in str(error) for error in errors)


def test_what_is_invalidated_while_it_is_made_is_not_kept() -> None:
    cache = ExpertCache(8, 4)
    began, go_on = threading.Event(), threading.Event()

    def old() -> Any:
        began.set()
        go_on.wait(10)
        return np.zeros(1)

    def body(number: int) -> None:
        if number == 0:
            assert cache.get_expert_tile(0, 0, 0, old)[0] == 0
            return
        began.wait(10)
        assert cache.invalidate_expert(0, 0) == 0
        assert cache.get_expert_tile(0, 0, 0, lambda: np.ones(1))[0] == 1
        go_on.set()

    run_threads(2, body)
    assert cache.get_expert_tile(0, 0, 0, lambda: np.zeros(1))[0] == 1


@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
def test_many_threads_with_every_operation(policy: str) -> None:
    cache = ExpertCache(EXPERTS, LAYERS, 20 * 64 / MIB, policy=policy)
    lookups = Counter[int]()
    in_flight = Counter[tuple[int, int, int]]()
    guard = threading.Lock()

    def make(key: tuple[int, int, int], generation: list[int]) -> Any:
        with guard:
            in_flight[key] += 1
            assert in_flight[key] == 1 or generation[0], "made twice at once"
        time.sleep(0)
        with guard:
            in_flight[key] -= 1
        return np.array([*key, 0, 0, 0, 0, 0])

    invalidated = [0]

    def body(number: int) -> None:
        rng = random.Random(number)
        for _ in range(400):
            key = (rng.randrange(LAYERS), rng.randrange(EXPERTS), rng.randrange(4))
            choice = rng.random()
            if choice < 0.7:
                assert cache.get_expert_tile(*key, lambda key=key: make(key, invalidated))[:3].tolist() == list(key)
                lookups[number] += 1
            elif choice < 0.8:
                with cache.lease_expert_tile(*key, lambda key=key: make(key, invalidated)) as leased:
                    assert leased[:3].tolist() == list(key)
                lookups[number] += 1
            elif choice < 0.9:
                cache.record_expert_activation(key[0], [[key[1]]])
            elif choice < 0.95:
                cache.resize(rng.choice([10, 20, 40]) * 64 / MIB)
            else:
                invalidated[0] = 1
                cache.invalidate_expert(*key[:2])

    run_threads(6, body)
    stats = cache.get_stats()
    assert stats["global"]["lookups"] == sum(lookups.values())
    assert round(stats["memory"]["size_mb"] * MIB) == 64 * stats["memory"]["num_entries"] <= cache.cache_size_bytes
    cache.clear()
    assert (cache.num_entries, cache.size_mb) == (0, 0.0)
