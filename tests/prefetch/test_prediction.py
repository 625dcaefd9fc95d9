"""Predictions against the formulas written anew. Section numbers are those of the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnx_moe._native_prediction import CrossLayerTable
from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.prefetch import PrefetchStats, PrefetchStrategy, RoutingHistory, predict_next_experts


def history_of(tokens: list[list[int]], window: int = 32) -> RoutingHistory:
    history = RoutingHistory(0, window)
    for token in tokens:
        history.record(token)
    return history


def test_4_1_a_history_keeps_what_is_recorded() -> None:
    history = history_of([[1, 2], [3, 4], [5, 6]])
    assert len(history) == 3
    assert history.get_last_experts() == [5, 6]
    history.clear()
    assert len(history) == 0


def test_4_1_a_window_of_3_forgets_the_oldest() -> None:
    history = history_of([[token] for token in range(10)], window=3)
    assert len(history) == 3
    assert history.get_last_experts() == [9]
    assert set(history.get_frequency_counts()) == {7, 8, 9}


def test_4_1_frequencies_count_tokens() -> None:
    assert history_of([[1, 2], [1, 3], [1, 2]]).get_frequency_counts() == {1: 3, 2: 2, 3: 1}


def test_4_1_decay_lets_two_recent_hits_outweigh_an_older_one() -> None:
    counts = history_of([[5], [1], [1]]).get_frequency_counts(decay=0.5)
    assert counts == {5: 0.25, 1: 1.5}


def test_4_1_nothing_is_known_before_the_first_token() -> None:
    history = RoutingHistory(0, 4)
    assert history.get_last_experts() == []
    assert history.get_frequency_counts() == {}


def test_4_2_repeat_predicts_the_current_experts() -> None:
    assert predict_next_experts([3, 7], strategy=PrefetchStrategy.REPEAT) == [3, 7]
    assert predict_next_experts([1, 2, 3, 4], strategy=PrefetchStrategy.REPEAT, prefetch_k=2) == [1, 2]


@pytest.mark.parametrize(
    "strategy", [PrefetchStrategy.REPEAT, PrefetchStrategy.HISTORY, PrefetchStrategy.TOP_K_RECENCY]
)
@pytest.mark.parametrize("history", [None, RoutingHistory(0, 4)])
def test_4_2_without_a_history_every_strategy_repeats(
    strategy: PrefetchStrategy, history: RoutingHistory | None
) -> None:
    assert predict_next_experts([9, 8, 7], history=history, strategy=strategy, prefetch_k=2) == [9, 8]


def test_4_2_a_floor_of_5_percent_drops_rare_experts() -> None:
    history = history_of([[1]] * 19 + [[2]] + [[3]] * 20)
    wanted = {"history": history, "strategy": PrefetchStrategy.HISTORY}
    assert predict_next_experts([9], **wanted) == [3, 1]  # type: ignore[arg-type]
    assert predict_next_experts([9], **wanted, min_confidence=0.01) == [3, 1, 2]  # type: ignore[arg-type]
    assert predict_next_experts([9], **wanted, min_confidence=0.9) == [9]  # type: ignore[arg-type]


def frequencies(tokens: list[list[int]], weight: Any) -> dict[int, float]:
    counts: dict[int, float] = {}
    for position, token in enumerate(tokens):
        for expert in token:
            counts[expert] = counts.get(expert, 0.0) + weight(position)
    return counts


def ranked(counts: dict[int, float]) -> list[int]:
    return sorted(counts, key=lambda expert: -counts[expert])


token_lists = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True), min_size=1, max_size=12)


@given(token_lists, st.lists(st.integers(0, 12), max_size=4, unique=True), st.integers(1, 8), st.floats(0.05, 1.0))
def test_4_2_predictions_are_the_formulas_bit_for_bit(
    tokens: list[list[int]], current: list[int], most: int, decay: float
) -> None:
    history = history_of(tokens)
    recent = frequencies(tokens, lambda position: decay ** (len(tokens) - 1 - position))
    assert history.get_frequency_counts(decay) == recent

    for expert in current:
        recent[expert] = recent.get(expert, 0.0) + 2.0
    assert predict_next_experts(current, None, history, prefetch_k=most, decay_factor=decay) == ranked(recent)[:most]

    counts = frequencies(tokens, lambda _: 1.0)
    total = sum(counts.values())
    frequent = [expert for expert in ranked(counts) if counts[expert] / total >= 0.1][:most]
    predicted = predict_next_experts(
        current, None, history, strategy=PrefetchStrategy.HISTORY, prefetch_k=most, min_confidence=0.1
    )
    assert predicted == (frequent or current[:most])


@given(token_lists, st.data())
def test_attention_weighs_the_tokens_of_the_history(tokens: list[list[int]], data: st.DataObject) -> None:
    """An eighth of an integer each, so that sums are exact."""
    older = data.draw(st.integers(0, 3))
    drawn = data.draw(st.lists(st.integers(0, 16), min_size=len(tokens), max_size=len(tokens)))
    heads = np.array([[0.5] * older + drawn, [0.5] * older + drawn])
    expected = frequencies(tokens, lambda position: drawn[position] / max(max(drawn), 1))
    expected[3] = expected.get(3, 0.0) + 2.0
    for pattern in (heads, torch.from_numpy(heads)[None], heads.tolist()):
        predicted = predict_next_experts(
            [3], pattern, history_of(tokens), strategy=PrefetchStrategy.ATTENTION_GUIDED, prefetch_k=6
        )
        assert predicted == ranked(expected)[:6]


def test_attention_changes_the_prediction() -> None:
    history = history_of([[1], [2], [3]])
    for position, expert in ((0, 1), (1, 2)):
        predicted = predict_next_experts(
            [3], np.eye(3)[position], history, strategy=PrefetchStrategy.ATTENTION_GUIDED, prefetch_k=2
        )
        assert predicted == [3, expert]


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list], ids=["numpy", "torch", "list"])
def test_current_experts_of_any_kind_of_one_token_or_several(kind: Any) -> None:
    assert predict_next_experts(kind([3, 7]), prefetch_k=9) == [3, 7]
    assert predict_next_experts(kind([[3, 7], [7, 1]]), prefetch_k=9) == [3, 7, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"current_routing": [64]}, "expert_ids holds 64 to 64, but experts are numbered 0 to 63"),
        ({"current_routing": [1.5]}, "expert_ids is float64"),
        ({"prefetch_k": 0}, "prefetch_k is 0"),
        ({"decay_factor": 0.0}, "decay_factor is 0.0, but must lie in (0, 1]"),
        ({"min_confidence": 2}, "min_confidence is 2, but must lie in [0, 1]"),
        ({"attention_pattern": [1.0]}, "attention_pattern is given, but PrefetchStrategy.TOP_K_RECENCY does not look"),
        (
            {"strategy": PrefetchStrategy.ATTENTION_GUIDED},
            "attention_pattern is missing, but",
        ),
        ({"strategy": PrefetchStrategy.CROSS_LAYER}, "use it as the strategy of an ExpertPrefetcher"),
    ],
)
def test_misuse_is_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        predict_next_experts(**{"current_routing": [1], "history": history_of([[1], [2]]), **arguments})
    assert message in str(error.value)


def test_attention_patterns_that_do_not_fit_are_refused() -> None:
    history = history_of([[1], [2]])
    for pattern, message in (([1.0], "the history holds 2 tokens"), ([1.0, -1.0], "negative or non-finite")):
        with pytest.raises(InvalidInputError, match=message):
            predict_next_experts([1], pattern, history, strategy=PrefetchStrategy.ATTENTION_GUIDED)
    with pytest.raises(InvalidInputError, match="window_size is 0"):
        RoutingHistory(0, 0)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True), max_size=30))
def test_a_cross_layer_table_predicts_what_followed(choices: list[list[int]]) -> None:
    """Layers 0, 1, 2, 0, 1, …; a row of the table loses half a percent at each use of its expert, in float32."""
    table = CrossLayerTable(3, 6)
    weights = np.zeros((3, 6, 6), np.float32)
    last: list[list[int]] = [[], [], []]
    for step, experts in enumerate(choices):
        layer = step % 3
        scores = np.zeros(6, np.float32)
        for previous in last[layer - 1]:
            scores += weights[layer, previous]
        expected = [expert for expert in np.argsort(-scores, kind="stable").tolist() if scores[expert] > 0]
        assert table.predict(layer, 4) == expected[:4]
        for previous in last[layer - 1]:
            weights[layer, previous] *= np.float32(0.995)
            weights[layer, previous, experts] += 1
        table.routed(layer, experts)
        last[layer] = experts


def test_a_cross_layer_table_refuses_what_is_out_of_range() -> None:
    table = CrossLayerTable(3, 6)
    with pytest.raises(OnnxMoeError, match="layer 3 is out of range: layers are numbered 0 to 2"):
        table.routed(3, [0])
    with pytest.raises(OnnxMoeError, match="expert 6 of layer 1 is out of range: experts are numbered 0 to 5"):
        table.routed(1, [0, 6])
    with pytest.raises(OnnxMoeError, match="layers are numbered 0 to 2"):
        table.predict(-1, 2)


def test_4_3_a_prediction_is_correct_when_one_expert_was_used() -> None:
    stats = PrefetchStats(0)
    assert stats.prediction_accuracy == stats.expert_hit_rate == stats.recall == 0.0
    for predicted, actual in (([1, 2], [1, 3]), ([4, 5], [6, 7]), ([8, 9], [9, 10])):
        stats.record_prediction(predicted, actual)
    assert stats.prediction_accuracy == 2 / 3
    assert (stats.predictions_made, stats.predictions_correct) == (3, 2)
    assert stats.recall == stats.precision == 2 / 6


def test_4_3_three_prefetched_two_hit() -> None:
    stats = PrefetchStats(0)
    stats.record_prediction([1, 2, 3], [1, 2])
    assert (stats.experts_prefetched, stats.experts_hit) == (3, 2)
    assert stats.expert_hit_rate == stats.precision == 2 / 3
    assert stats.recall == 1.0


def test_4_3_latency_is_the_mean_of_the_last_100() -> None:
    stats = PrefetchStats(0)
    assert stats.prefetch_latency_ms == 0.0
    for latency in (1, 2, 3):
        stats.record_latency(latency)
    assert stats.prefetch_latency_ms == 2.0
    for _ in range(100):
        stats.record_latency(5)
    assert stats.prefetch_latency_ms == 5.0
    assert stats.as_dict()["avg_latency_ms"] == "5.00"
