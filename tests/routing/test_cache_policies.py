"""The native cache policies against a cache written anew here, in sets and fractions, and against exhaustive search."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_moe import OnnxMoeError
from onnx_moe.routing import CacheSetup, Call, RoutingTrace, simulate_cache

Visits = list[tuple[int, list[int]]]


def make_trace(visits: Visits, layers: int, experts: int) -> RoutingTrace:
    """Calls of any number of tokens, one expert each."""
    return RoutingTrace.of_calls(
        [Call(layer, np.array(ids, np.int32).reshape(-1, 1)) for layer, ids in visits], experts, layers
    )


@dataclass
class NaiveCache:
    """The rules as the documents state them, without a thought for speed. Keys are (layer, expert)."""

    setup: CacheSetup
    layers: int
    experts: int
    visits: Visits
    residents: set[tuple[int, int]] = field(default_factory=set)
    history: list[tuple[int, tuple[int, int]]] = field(default_factory=list)  # (ordinal of the layer's call, key)
    calls: list[int] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)
    bypassed: int = 0

    def __post_init__(self) -> None:
        self.calls = [0] * self.layers
        self.residents = {divmod(key, self.experts) for key in self.setup.preloaded}
        self.pinned = {divmod(key, self.experts) for key in self.setup.pinned}
        self.future = [(layer, e) for layer, ids in self.visits for e in dict.fromkeys(ids)]

    def value(self, key: tuple[int, int]) -> Any:
        """Least goes first."""
        if self.setup.policy == "decayed-lfu":
            decay, now = Fraction(self.setup.decay), self.calls[key[0]]
            return sum((decay ** (now - then) for then, used in self.history if used == key), Fraction(0))
        if self.setup.policy == "belady":
            rest = self.future[len(self.history) :]
            return -(rest.index(key) if key in rest else len(self.future) + 1)
        return 0

    def rank(self, key: tuple[int, int]) -> tuple[Any, ...]:
        last = max((position for position, (_, used) in enumerate(self.history) if used == key), default=-1)
        return key in self.pinned, self.value(key), last, key

    def victim(self, layer: int, leased: set[tuple[int, int]]) -> tuple[int, int] | None:
        free = self.residents - leased
        count = [sum(owner == each for owner, _ in self.residents) for each in range(self.layers)]
        fair = {key for key in free if key[0] == layer or count[key[0]] > self.setup.layer_floor}
        return min(fair or free, key=self.rank, default=None)

    def passing(self, missing: list[tuple[int, int]], ids: list[int]) -> set[tuple[int, int]]:
        """Of a call that misses more than its share, all but those that it chose last."""
        last = sorted(missing, key=lambda key: max(i for i, expert in enumerate(ids) if expert == key[1]))
        return set() if self.setup.share is None else set(last[: max(0, len(last) - self.setup.share)])

    def run(self) -> NaiveCache:
        for layer, ids in self.visits:
            self.calls[layer] += 1
            unique = [(layer, e) for e in dict.fromkeys(ids)]
            self.history += [(self.calls[layer], key) for key in unique]
            before = set(self.residents)
            leased = before & set(unique)
            gone: dict[tuple[int, int], int] = {}
            passing = self.passing([key for key in unique if key not in before], ids)
            self.bypassed += len(passing)
            for key in unique:
                if key in before or key in passing:
                    continue
                if len(self.residents) == self.setup.capacity:
                    victim = self.victim(layer, leased)
                    if victim is None:
                        leased = set()
                        victim = self.victim(layer, leased)
                    assert victim is not None
                    self.residents.remove(victim)
                    gone[key] = victim[0] * self.experts + victim[1]
                self.residents.add(key)
                leased.add(key)
            for position, expert in enumerate(ids):
                repeated = expert in ids[:position]
                self.outcomes.append(2 if repeated else int((layer, expert) in before))
                self.evicted.append(-1 if repeated else gone.get((layer, expert), -1))
        return self


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, Visits, CacheSetup]:
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    visit = st.tuples(st.integers(0, layers - 1), st.lists(st.integers(0, experts - 1), min_size=1, max_size=6))
    visits = draw(st.lists(visit, min_size=1, max_size=40))
    capacity = draw(st.integers(1, layers * experts + 2))
    keys = st.lists(st.integers(0, layers * experts - 1), unique=True, max_size=capacity)
    setup = CacheSetup(
        capacity,
        draw(st.sampled_from(["lru", "decayed-lfu", "belady"])),
        draw(st.integers(0, capacity // layers)),
        draw(st.sampled_from([1.0, 0.95, 0.5])),
        draw(keys),
        draw(keys),
        draw(st.one_of(st.none(), st.integers(1, 4))),
    )
    return layers, experts, visits, setup


@settings(max_examples=400, deadline=None)
@given(cases())
def test_every_decision_equals_the_naive_caches(case: tuple[int, int, Visits, CacheSetup]) -> None:
    layers, experts, visits, setup = case
    expected = NaiveCache(setup, layers, experts, visits).run()
    result = simulate_cache(make_trace(visits, layers, experts), setup)
    assert result.outcomes.tolist() == expected.outcomes
    assert result.evicted.tolist() == expected.evicted
    assert result.hits == expected.outcomes.count(1)
    assert result.misses == expected.outcomes.count(0)
    assert result.evictions == sum(key >= 0 for key in expected.evicted)
    assert result.bypassed == expected.bypassed


def test_a_prefill_keeps_what_its_last_tokens_chose() -> None:
    """Expert 0 is the first and the last token's: when it was last chosen counts."""
    prefill = (0, [0, 1, 2, 3, 4, 0])
    for kept in range(5):
        result = simulate_cache(make_trace([prefill, (0, [kept])], 1, 5), CacheSetup(4, share=2))
        assert (result.hits, result.bypassed) == (int(kept in {0, 4}), 3)


def fewest_misses(visits: Visits, capacity: int) -> int:
    """By trying every choice of victims; a call's experts must all be there together."""

    @functools.cache
    def search(position: int, residents: frozenset[tuple[int, int]]) -> int:
        if position == len(visits):
            return 0
        layer, ids = visits[position]
        needed = frozenset((layer, e) for e in ids)
        missing = needed - residents
        others = residents - needed
        gone = max(0, len(residents) + len(missing) - capacity)
        rests = (others - set(out) for out in itertools.combinations(sorted(others), gone))
        return len(missing) + min(search(position + 1, rest | needed) for rest in rests)

    return search(0, frozenset())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_belady_is_optimal_and_no_policy_beats_it(data: st.DataObject) -> None:
    layers, experts = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 4))
    visit = st.tuples(st.integers(0, layers - 1), st.lists(st.integers(0, experts - 1), min_size=1, max_size=2))
    visits = data.draw(st.lists(visit, min_size=1, max_size=14))
    capacity = data.draw(st.integers(2, 5))
    trace = make_trace(visits, layers, experts)
    fewest = fewest_misses(visits, capacity)
    assert simulate_cache(trace, CacheSetup(capacity, "belady")).misses == fewest
    for policy in ("lru", "decayed-lfu"):
        assert simulate_cache(trace, CacheSetup(capacity, policy)).misses >= fewest


def token_trace(tokens: int, layers: int, experts: int, top_k: int) -> RoutingTrace:
    """Decoding with some experts more popular than others, and repetition."""
    random = np.random.default_rng(3)
    popularity = 1 / np.arange(1, experts + 1)
    visits = []
    for _ in range(tokens):
        for layer in range(layers):
            ids = random.choice(experts, top_k, replace=False, p=popularity / popularity.sum())
            visits.append((layer, ids.tolist()))
    return make_trace(visits, layers, experts)


def test_lru_never_loses_from_a_slot_more() -> None:
    """Inclusion: what an LRU cache holds, a larger one holds too."""
    trace = token_trace(200, 4, 16, 3)
    results = [simulate_cache(trace, CacheSetup(capacity)) for capacity in range(12, 65, 4)]
    for smaller, larger in itertools.pairwise(results):
        assert bool((larger.outcomes[smaller.outcomes == 1] == 1).all())
    assert results[-1].misses == len(set(zip(np.repeat(trace.layers, 3), trace.experts, strict=True)))


def test_below_one_token_cycle_lru_finds_nothing() -> None:
    trace = make_trace([(layer, [0]) for _ in range(50) for layer in range(8)], 8, 2)
    assert simulate_cache(trace, CacheSetup(7)).hits == 0
    assert simulate_cache(trace, CacheSetup(8)).misses == 8
    assert simulate_cache(trace, CacheSetup(7, "belady")).hit_rate > 0.8


def test_a_floor_protects_a_layer_that_is_called_seldom() -> None:
    visits: Visits = []
    for step in range(60):
        visits += [(0, [step % 5, (step + 1) % 5])]
        if step % 10 == 0:
            visits += [(1, [0, 1])]
    trace = make_trace(visits, 2, 5)
    of_layer_1 = np.repeat(trace.layers, np.diff(trace.offsets)) == 1
    without = simulate_cache(trace, CacheSetup(4))
    with_floor = simulate_cache(trace, CacheSetup(4, layer_floor=2))
    assert int((without.outcomes[of_layer_1] == 1).sum()) == 0
    assert int((with_floor.outcomes[of_layer_1] == 0).sum()) == 2


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (CacheSetup(0), "the cache has 0 slots: it needs at least 1"),
        (CacheSetup(7, layer_floor=4), "a floor of 4 slots in each of 2 layers does not fit into 7 slots.*to 3"),
        (CacheSetup(4, "decayed-lfu", decay=0.0), r"decay is 0: it must lie in \(0, 1\]"),
        (CacheSetup(4, "decayed-lfu", decay=float("nan")), "decay is nan"),
        (CacheSetup(4, "fifo"), "policy='fifo' is unknown: use one of lru, decayed-lfu, belady"),
        (CacheSetup(4, pinned=[10]), "pinned expert key 10 is out of range: keys are 0 to 9"),
        (CacheSetup(4, preloaded=[-1]), "preloaded expert key -1 is out of range"),
        (CacheSetup(1, preloaded=[3, 4]), "expert key 4 cannot take a slot: all are taken"),
        (CacheSetup(3, preloaded=[3, 3]), "expert key 3 cannot take a slot: it holds one"),
    ],
    ids=str,
)
def test_misuse_is_named(setup: CacheSetup, message: str) -> None:
    with pytest.raises(OnnxMoeError, match=message):
        simulate_cache(make_trace([(0, [1]), (1, [2])], 2, 5), setup)


def trace_of(**changes: Any) -> Callable[[], RoutingTrace]:
    columns: dict[str, Any] = {
        "num_experts": 4,
        "top_k": 2,
        "layer_names": ("a", "b"),
        "layers": np.array([0, 1], np.int32),
        "phases": np.zeros(2, np.uint8),
        "requests": np.zeros(2, np.int32),
        "offsets": np.array([0, 2, 6]),
        "experts": np.array([0, 1, 2, 3, 0, 1], np.int32),
    }
    return lambda: RoutingTrace(**{**columns, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (trace_of(layers=np.array([0, 2], np.int32)), "holds layer 2 at position 1, but layers are numbered 0 to 1"),
        (trace_of(experts=np.array([0, 1, -1, 3, 0, 1], np.int32)), "holds expert -1 at position 2"),
        (trace_of(offsets=np.array([0, 3, 6])), "whole tokens of 2"),
        (trace_of(offsets=np.array([0, 2, 4])), "6 experts into calls"),
        (trace_of(requests=np.zeros(3, np.int32)), "requests is for 3 calls, but layers names 2"),
        (trace_of(weights=np.zeros(5, np.float32)), "5 weights are given for 6 experts"),
        (trace_of(top_k=5), "top_k is 5, but there are 4 experts"),
        (trace_of(layer_names=()), "num_layers is 0"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(make: Callable[[], RoutingTrace], message: str) -> None:
    with pytest.raises(OnnxMoeError, match=message):
        make()


def test_selecting_calls() -> None:
    trace = token_trace(5, 3, 8, 2)
    chosen = trace.select(trace.layers == 1)
    assert chosen.num_calls == 5
    np.testing.assert_array_equal(chosen.experts.reshape(5, 2), trace.experts.reshape(5, 3, 2)[:, 1])
