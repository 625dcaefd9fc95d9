"""How well predictors tell which experts come next: scored on recorded tokens, each before it is learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnx_moe.prefetch import PrefetchStrategy, RoutingHistory, predict_next_experts
from onnx_moe.routing.sampling import sample_of
from onnx_moe.routing.trace import DECODE, RoutingTrace

Array = NDArray[Any]


#: Tokens that a profile's predictors are scored on.
SCORED_TOKENS = 192


def scored_part(trace: RoutingTrace) -> RoutingTrace:
    """The last of a trace's tokens: predictors are written in Python and see every one."""
    part = sample_of(trace, SCORED_TOKENS * trace.top_k * len(np.unique(trace.layers)))
    return trace if part is None else part


@dataclass(frozen=True)
class History:
    """What is known when a layer is about to run for a token.

    past: experts of this layer for the sequence's last tokens. previous_layer: those that the layer before chose for
    this token; None for the first layer.
    """

    layer: int
    past: RoutingHistory
    previous_layer: Sequence[int] | None


class Predictor(Protocol):
    """Something that predicts experts. `observe` follows each `predict`, with what was chosen then."""

    def predict(self, history: History, budget: int) -> Sequence[int]:
        """At most `budget` expert ids, the likeliest first: a smaller budget gets the first of them."""

    def observe(self, history: History, experts: Sequence[int]) -> None:
        """Learns from a choice."""


@dataclass(frozen=True)
class Score:
    """How a predictor did with a budget: means over predictions.

    recall: share of the token's experts that were predicted. precision: share of the predictions that were right.
    mass_recall: recall, by gate weight; None without weights. whole_set: share of tokens of which all experts were
    predicted. per_layer_recall [L], NaN for layers without a prediction.
    """

    predictor: str
    budget: int
    recall: float
    precision: float
    mass_recall: float | None
    whole_set: float
    per_layer_recall: Array


@dataclass
class _Table:
    """Counts by layer, from which the most frequent are predicted."""

    num_experts: int
    counts: dict[int, Array] = field(default_factory=dict)

    def of(self, layer: int, *shape: int) -> Array:
        if layer not in self.counts:
            self.counts[layer] = np.zeros(shape, np.int64)
        return self.counts[layer]


def _best(scores: Array, budget: int) -> list[int]:
    chosen: list[int] = np.argsort(-scores, kind="stable")[:budget].tolist()
    return chosen


class Temporal:
    """What the sequence's last tokens tell, by the rule of `predict_next_experts`."""

    def __init__(self, strategy: PrefetchStrategy, num_experts: int) -> None:
        self._strategy = strategy
        self._num_experts = num_experts

    def predict(self, history: History, budget: int) -> Sequence[int]:
        """See Predictor."""
        return predict_next_experts(
            history.past.get_last_experts(),
            history=history.past,
            num_experts=self._num_experts,
            strategy=self._strategy,
            prefetch_k=budget,
        )

    def observe(self, history: History, experts: Sequence[int]) -> None:
        """See Predictor."""


class Popularity:
    """The experts that the layer used most, over all sequences so far."""

    def __init__(self, num_experts: int) -> None:
        self._table = _Table(num_experts)
        self._num_experts = num_experts

    def predict(self, history: History, budget: int) -> Sequence[int]:
        """See Predictor."""
        return _best(self._table.of(history.layer, self._num_experts), budget)

    def observe(self, history: History, experts: Sequence[int]) -> None:
        """See Predictor."""
        self._table.of(history.layer, self._num_experts)[list(experts)] += 1


class CrossLayer:
    """The experts that followed most often on those of the layer before; popularity breaks ties."""

    def __init__(self, num_experts: int) -> None:
        self._table = _Table(num_experts)
        self._popularity = Popularity(num_experts)
        self._num_experts = num_experts

    def predict(self, history: History, budget: int) -> Sequence[int]:
        """See Predictor."""
        if history.previous_layer is None:
            return self._popularity.predict(history, budget)
        table = self._table.of(history.layer, self._num_experts, self._num_experts)
        return _best(table[list(history.previous_layer)].sum(0), budget)

    def observe(self, history: History, experts: Sequence[int]) -> None:
        """See Predictor."""
        self._popularity.observe(history, experts)
        if history.previous_layer is not None:
            table = self._table.of(history.layer, self._num_experts, self._num_experts)
            table[np.ix_(history.previous_layer, experts)] += 1


def default_predictors(num_experts: int) -> dict[str, Predictor]:
    """The predictors of the profile's scoreboard by name, besides chance."""
    return {
        "popularity": Popularity(num_experts),
        "repeat": Temporal(PrefetchStrategy.REPEAT, num_experts),
        "recency": Temporal(PrefetchStrategy.TOP_K_RECENCY, num_experts),
        "cross-layer": CrossLayer(num_experts),
    }


def scoreboard(
    trace: RoutingTrace,
    predictors: dict[str, Predictor],
    budgets: Sequence[int],
    window: int = 32,
    progress: Callable[[float], None] | None = None,
) -> list[Score]:
    """Scores each predictor with each budget on every token of `trace`, learning online, and chance first of all.

    window: tokens of a sequence that a predictor sees. A sequence is a request in a prompt, a row of a request in
    decoding calls.
    """
    tallies = {(name, budget): _Tally(trace.num_layers) for name in predictors for budget in budgets}
    streams: dict[tuple[int, int, int], RoutingHistory] = {}
    previous: list[list[list[int]]] = [[] for _ in range(trace.num_layers)]
    for call in range(trace.num_calls):
        layer, request, decode = int(trace.layers[call]), int(trace.requests[call]), trace.phases[call] == DECODE
        part = slice(int(trace.offsets[call]), int(trace.offsets[call + 1]))
        rows = trace.experts[part].reshape(-1, trace.top_k).tolist()
        weights = None if trace.weights is None else trace.weights[part].reshape(-1, trace.top_k).tolist()
        before = previous[layer - 1] if layer and len(previous[layer - 1]) == len(rows) else None
        for row, experts in enumerate(rows):
            stream = streams.setdefault((layer, request, row if decode else 0), RoutingHistory(layer, window))
            history = History(layer, stream, None if before is None else before[row])
            for name, predictor in predictors.items():
                predicted = predictor.predict(history, max(budgets))
                for budget in budgets:
                    mass = None if weights is None else weights[row]
                    tallies[name, budget].add(layer, predicted[:budget], experts, mass)
                predictor.observe(history, experts)
            stream.record(experts)
        previous[layer] = rows
        if progress is not None and call % 1024 == 0:
            progress(call / trace.num_calls)
    scores = [_chance(trace, budget) for budget in budgets]
    return scores + [tally.score(name, budget) for (name, budget), tally in tallies.items()]


@dataclass
class _Tally:
    """Sums behind a Score."""

    num_layers: int
    wanted: int = 0
    predicted: int = 0
    right: int = 0
    mass: float = 0.0
    right_mass: float = 0.0
    tokens: int = 0
    whole: int = 0
    layers: Array = field(init=False)

    def __post_init__(self) -> None:
        self.layers = np.zeros((self.num_layers, 2), np.int64)

    def add(
        self, layer: int, predicted: Sequence[int], experts: Sequence[int], weights: Sequence[float] | None
    ) -> None:
        guesses = set(predicted)
        right = sum(expert in guesses for expert in experts)
        self.tokens += 1
        self.wanted += len(experts)
        self.predicted += len(predicted)
        self.right += right
        self.whole += right == len(experts)
        self.layers[layer] += (right, len(experts))
        for expert, weight in zip(experts, weights or (), strict=False):
            self.mass += weight
            self.right_mass += weight * (expert in guesses)

    def score(self, name: str, budget: int) -> Score:
        with np.errstate(invalid="ignore", divide="ignore"):
            per_layer = self.layers[:, 0] / self.layers[:, 1]
        return Score(
            name,
            budget,
            self.right / max(self.wanted, 1),
            self.right / max(self.predicted, 1),
            self.right_mass / self.mass if self.mass else None,
            self.whole / max(self.tokens, 1),
            per_layer,
        )


def _chance(trace: RoutingTrace, budget: int) -> Score:
    """What `budget` ids at random are expected to find."""
    size, wanted = trace.num_experts, trace.top_k
    budget_share = min(budget / size, 1.0)
    # All `wanted` ids among `budget` of `size`: a hypergeometric probability.
    whole = float(np.prod([max(budget - i, 0) / (size - i) for i in range(wanted)]))
    mass = budget_share if trace.weights is not None else None
    precision = wanted / size
    return Score("random", budget, budget_share, precision, mass, whole, np.full(trace.num_layers, budget_share))
