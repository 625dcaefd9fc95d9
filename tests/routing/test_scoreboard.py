"""The predictors' scoreboard against loops, and what each predictor ought to find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onnx_moe.prefetch import RoutingHistory
from onnx_moe.routing import History, RoutingTrace, Score, default_predictors, scoreboard
from onnx_moe.routing.scoreboard import CrossLayer, Popularity
from tests.routing.traces import decoded, random_trace


def scores_of(trace: RoutingTrace, budgets: Sequence[int] = (2, 4)) -> dict[tuple[str, int], Score]:
    found = scoreboard(trace, default_predictors(trace.num_experts), budgets)
    return {(score.predictor, score.budget): score for score in found}


def history(tokens: Sequence[Sequence[int]], layer: int = 0, previous_layer: Sequence[int] | None = None) -> History:
    past = RoutingHistory(layer, window_size=32)
    for experts in tokens:
        past.record(experts)
    return History(layer, past, previous_layer)


class Oracle:
    """Told what comes."""

    def __init__(self, trace: RoutingTrace, wrong: int) -> None:
        self._rows = iter(trace.experts.reshape(-1, trace.top_k).tolist())
        self._wrong = wrong

    def predict(self, history: History, budget: int) -> Sequence[int]:
        return [*next(self._rows), self._wrong]

    def observe(self, history: History, experts: Sequence[int]) -> None:
        pass


def test_figures_of_a_predictor_that_knows() -> None:
    """The control: told everything, it must find everything."""
    trace = random_trace(1, passes=30)
    (chance, score) = scoreboard(trace, {"oracle": Oracle(trace, 8)}, [4])
    assert score.recall == score.whole_set == 1.0
    assert score.mass_recall == pytest.approx(1.0)
    assert (score.per_layer_recall == 1).all()
    rows = trace.experts.reshape(-1, trace.top_k)
    assert score.precision == pytest.approx(3 / 4)
    assert chance.recall == pytest.approx(4 / 9)
    assert rows.shape[1] == 3


def test_figures_equal_loops() -> None:
    trace = random_trace(2, passes=40)
    found = scores_of(trace, [3])["repeat", 3]
    right = wanted = whole = guesses = 0
    mass = right_mass = 0.0
    last: dict[tuple[int, int, int], list[int]] = {}
    for call in range(trace.num_calls):
        part = slice(int(trace.offsets[call]), int(trace.offsets[call + 1]))
        assert trace.weights is not None
        for row, ids in enumerate(trace.experts[part].reshape(-1, 3).tolist()):
            key = (int(trace.layers[call]), int(trace.requests[call]), row if trace.phases[call] else 0)
            predicted = last.get(key, [])
            hits = [expert in predicted for expert in ids]
            weights = trace.weights[part].reshape(-1, 3)[row].tolist()
            right += sum(hits)
            wanted += 3
            whole += all(hits)
            guesses += len(predicted)
            mass += sum(weights)
            right_mass += sum(weight for weight, hit in zip(weights, hits, strict=True) if hit)
            last[key] = ids
    assert found.recall == right / wanted
    assert found.precision == right / guesses
    assert found.whole_set == whole / (wanted / 3)
    assert found.mass_recall == pytest.approx(right_mass / mass)


def test_without_weights_there_is_no_mass_recall() -> None:
    trace = random_trace(2, passes=10, weights=False)
    assert {score.mass_recall for score in scores_of(trace).values()} == {None}


def test_chance_is_what_random_guesses_find() -> None:
    random = np.random.default_rng(0)
    found = scores_of(decoded(np.zeros((2, 1, 1), int), 12), [5])["random", 5]
    guesses = np.array([random.permutation(12)[:5] for _ in range(4000)])
    assert found.recall == pytest.approx((guesses == 0).any(1).mean(), abs=0.03)
    trace = random_trace(0, passes=4, experts=12, top_k=2)
    hits = np.array([len({0, 1} & set(row)) for row in guesses.tolist()])
    found = scores_of(trace, [5])["random", 5]
    assert found.whole_set == pytest.approx((hits == 2).mean(), abs=0.03)
    assert found.precision == pytest.approx(hits.mean() / 5, abs=0.02)


def test_repeat_finds_what_repeats() -> None:
    ids = np.repeat(np.random.default_rng(0).integers(0, 20, (30, 2, 1)), 4, axis=0)
    found = scores_of(decoded(ids, 20), [1])
    assert found["repeat", 1].recall > 0.7
    assert found["popularity", 1].recall < 0.4


def test_the_cross_layer_table_finds_what_follows() -> None:
    first = np.random.default_rng(0).integers(0, 8, (400, 1, 1))
    found = scores_of(decoded(np.concatenate([first, (first + 3) % 8], axis=1), 8), [1])
    score = found["cross-layer", 1]
    assert score.per_layer_recall[1] > 0.95
    assert score.per_layer_recall[0] < 0.3
    assert found["repeat", 1].recall < 0.3


def test_popularity_finds_the_most_used() -> None:
    ids = np.random.default_rng(0).choice(10, (500, 1, 1), p=[0.7, *[0.3 / 9] * 9])
    assert scores_of(decoded(ids, 10), [1])["popularity", 1].recall == pytest.approx(0.7, abs=0.06)


class TestPredictors:
    def test_repeat(self) -> None:
        repeat = default_predictors(8)["repeat"]
        assert repeat.predict(history([[1, 2], [1, 3], [4, 5]]), 1) == [4]
        assert repeat.predict(history([]), 3) == []

    def test_recency(self) -> None:
        # 4 and 5: 1 + 2; 1: 0.9 + 0.81; 3: 0.9; 2: 0.81.
        assert default_predictors(8)["recency"].predict(history([[1, 2], [1, 3], [4, 5]]), 5) == [4, 5, 1, 3, 2]

    def test_tables_learn(self) -> None:
        popularity, table = Popularity(8), CrossLayer(8)
        for previous, experts in (([0, 1], [6, 7]), ([2, 3], [4, 7])):
            popularity.observe(history([], 1, previous), experts)
            table.observe(history([], 1, previous), experts)
        assert popularity.predict(history([], 1), 1) == [7]
        assert table.predict(history([], 1, [2, 5]), 2) == [4, 7]
        assert set(table.predict(history([], 1), 1)) == {7}
        assert popularity.predict(history([], 0), 2) == [0, 1]  # another layer knows nothing
