"""How the experts of a layer are used: loads, pairs, and how layers predict each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import measures
from onnx_moe.routing.counts import RoutingCounts

Array = NDArray[Any]

#: Times the mean load from which an expert is hot, and below which it is cold.
HOT_THRESHOLD, COLD_THRESHOLD = 1.5, 0.5
#: Correlation or recall above which a layer counts as foretold.
ENOUGH = 0.7


@dataclass
class ExpertLoadStats:
    """The load of one expert of a layer.

    activation_rate: share of the layer's selections. avg_probability, std_probability: of its weights where it was
    chosen by a call with weights (NaN where counters alone are known). rank_distribution: rank (0 the best) → how
    often; empty where ranks are not known. is_dead: never chosen, and that is no accident (`measures.absence_tells`).
    """

    expert_id: int
    total_activations: int = 0
    activation_rate: float = 0.0
    avg_probability: float = 0.0
    std_probability: float = 0.0
    rank_distribution: dict[int, int] = field(default_factory=dict)
    is_hot: bool = False
    is_cold: bool = False
    is_dead: bool = False

    @property
    def primary_selection_rate(self) -> float:
        """How often of its selections the expert was the best of its token; 0 without any."""
        return self.rank_distribution.get(0, 0) / self.total_activations if self.total_activations else 0.0


@dataclass(frozen=True)
class LoadThresholds:
    """Times the mean load above which an expert is hot, and below which it is cold."""

    hot: float = HOT_THRESHOLD
    cold: float = COLD_THRESHOLD

    def __post_init__(self) -> None:
        for name, value in (("hot_threshold", self.hot), ("cold_threshold", self.cold)):
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInputError(f"{name} is {value}, but must be at least 0: it is times the mean load.")


@dataclass
class LayerRoutingProfile:
    """The load of a layer's experts, all phases together.

    expert_stats: of each expert by its id; none without tokens. load_balance_cv: standard deviation over mean of the
    non-zero loads; load_balance_cv_all: of all. entropy: of the loads over ln E; gini_coefficient: over all experts.
    expected_uses: tokens · top_k / E. dead_experts: how many were never chosen although their absence tells something
    (`measures.absence_tells`); unseen_experts: ids of all that were never chosen.
    """

    layer_idx: int
    expert_stats: dict[int, ExpertLoadStats] = field(default_factory=dict)
    total_tokens: int = 0
    load_balance_cv: float = 0.0
    entropy: float = 0.0
    gini_coefficient: float = 0.0
    active_experts: int = 0
    dead_experts: int = 0
    load_balance_cv_all: float = 0.0
    max_over_mean: float = 0.0
    expected_uses: float = 0.0
    unseen_experts: list[int] = field(default_factory=list)

    def get_hot_experts(self, threshold: float | None = None) -> list[int]:
        """Experts with more than `threshold` times the mean load; None: those that the profiler called hot."""
        if threshold is None:
            return [expert for expert, stats in self.expert_stats.items() if stats.is_hot]
        limit = LoadThresholds(hot=threshold).hot * self.expected_uses
        return [expert for expert, stats in self.expert_stats.items() if stats.total_activations > limit]

    def get_cold_experts(self, threshold: float | None = None) -> list[int]:
        """Experts that were chosen, with less than `threshold` times the mean load; None: those that the profiler
        called cold.
        """
        if threshold is None:
            return [expert for expert, stats in self.expert_stats.items() if stats.is_cold]
        limit = LoadThresholds(cold=threshold).cold * self.expected_uses
        return [expert for expert, stats in self.expert_stats.items() if 0 < stats.total_activations < limit]

    def get_dead_experts(self) -> list[int]:
        """Experts that were never chosen, which is no accident."""
        return [expert for expert, stats in self.expert_stats.items() if stats.is_dead]

    @property
    def unseen_rate_bound(self) -> float:
        """Rate per token that an unseen expert has at most, at 95 % confidence: −ln 0.05 / tokens; NaN without any."""
        return -float(np.log(0.05)) / self.total_tokens if self.total_tokens else float("nan")

    @classmethod
    def of(cls, counts: RoutingCounts, layer: int, thresholds: LoadThresholds | None = None) -> LayerRoutingProfile:
        """The profile of a layer."""
        loads = counts.counts[:, layer].sum(0)
        tokens = int(counts["tokens"][:, layer].sum())
        if tokens == 0:
            return cls(layer)
        mean = loads.sum() / loads.size
        stats = _expert_stats(counts, layer, thresholds or LoadThresholds())
        return cls(
            layer_idx=layer,
            expert_stats=stats,
            total_tokens=tokens,
            load_balance_cv=measures.variation(loads, active_only=True),
            entropy=float(measures.entropy(loads)),
            gini_coefficient=float(measures.gini(loads)),
            active_experts=int((loads > 0).sum()),
            dead_experts=sum(each.is_dead for each in stats.values()),
            load_balance_cv_all=measures.variation(loads),
            max_over_mean=float(loads.max() / mean),
            expected_uses=float(mean),
            unseen_experts=np.flatnonzero(loads == 0).tolist(),
        )


def _expert_stats(counts: RoutingCounts, layer: int, thresholds: LoadThresholds) -> dict[int, ExpertLoadStats]:
    ranks = counts["rank_counts"][:, layer].sum(0)
    loads = counts.counts[:, layer].sum(0)
    weighted, mass, squares = (counts[name][:, layer].sum(0) for name in ("weighted_uses", "mass", "mass_squares"))
    uses = np.maximum(weighted, 1)
    mean = mass / uses
    spread = np.sqrt(np.maximum(squares / uses - mean**2, 0.0))
    dead = (loads == 0) & measures.absence_tells(loads)
    return {
        expert: ExpertLoadStats(
            expert_id=expert,
            total_activations=int(loads[expert]),
            activation_rate=float(loads[expert] / loads.sum()),
            avg_probability=float(mean[expert]),
            std_probability=float(spread[expert]),
            rank_distribution={rank: int(count) for rank, count in enumerate(ranks[expert]) if count},
            is_hot=bool(loads[expert] > thresholds.hot * loads.mean()),
            is_cold=bool(0 < loads[expert] < thresholds.cold * loads.mean()),
            is_dead=bool(dead[expert]),
        )
        for expert in range(loads.size)
    }


@dataclass
class ExpertCooccurrence:
    """How often two experts are chosen by the same token.

    cooccurrence_matrix: int64 [E, E], symmetric, selections of each on the diagonal. conditional_probs [i, j]: P(j |
    i), with 1 on the diagonal of experts that occur. lift [i, j]: P(i and j) / (P(i) · P(j)) over tokens, 1 where they
    are independent, 0 on the diagonal; None where several layers are summed, since expert numbers of different layers
    are unrelated. top_pairs: (i, j, count), most frequent first.
    """

    num_experts: int
    cooccurrence_matrix: Array = field(init=False)
    conditional_probs: Array | None = None
    top_pairs: list[tuple[int, int, int]] = field(default_factory=list)
    lift: Array | None = None

    def __post_init__(self) -> None:
        self.cooccurrence_matrix = np.zeros((self.num_experts, self.num_experts), np.int64)

    @classmethod
    def of(cls, counts: RoutingCounts, layers: range | list[int], num_pairs: int = 50) -> ExpertCooccurrence:
        """Of one layer, or summed over several."""
        result = cls(counts.num_experts)
        matrix = result.cooccurrence_matrix
        for layer in layers:
            matrix += counts.pairs_of(layer)
        selections = matrix.diagonal()
        result.conditional_probs = matrix / np.maximum(selections, 1)[:, None]
        if len(layers) == 1:
            tokens = int(counts["tokens"][:, layers[0]].sum())
            expected = np.outer(selections, selections) / max(tokens, 1)
            result.lift = np.divide(matrix, expected, out=np.zeros_like(expected), where=expected > 0)
            np.fill_diagonal(result.lift, 0.0)
        rows, columns = np.triu_indices(counts.num_experts, 1)
        pairs = matrix[rows, columns]
        order = np.argsort(-pairs, kind="stable")[:num_pairs]
        result.top_pairs = [(int(rows[i]), int(columns[i]), int(pairs[i])) for i in order if pairs[i]]
        return result


@dataclass
class RoutingPredictability:
    """How well a layer's choices tell another's.

    layer_correlations: float32 [L, L], Pearson correlation of the one-hot choices of two layers for the same tokens: it
    sees only layers that number their experts alike, so it is near 0 in trained models. predictable_from_layer: the
    first layer with correlations above 0.7 with every later one, −1 where there is none; avg_prediction_accuracy: the
    mean of those correlations, else 0; per_layer_accuracy: layer → its correlation with layer 0.

    What a prefetcher can have: table_recall [L], share of a token's experts among the top_k that follow most often on
    those of the layer before, NaN for layer 0; avg_table_recall, their mean, NaN without any; foretold_from_layer: the
    first layer from whose successor on all recalls are above 0.7, −1 where there is none.
    """

    num_layers: int
    layer_correlations: Array = field(init=False)
    predictable_from_layer: int = -1
    avg_prediction_accuracy: float = 0.0
    per_layer_accuracy: dict[int, float] = field(default_factory=dict)
    table_recall: Array = field(init=False)
    avg_table_recall: float = float("nan")
    foretold_from_layer: int = -1

    def __post_init__(self) -> None:
        self.layer_correlations = np.zeros((self.num_layers, self.num_layers), np.float32)
        self.table_recall = np.full(self.num_layers, np.nan)

    @classmethod
    def of(cls, counts: RoutingCounts, table_recall: Array | None = None) -> RoutingPredictability:
        """table_recall: measured on single tokens [L], as `scoreboard` does; else the recall for one known expert."""
        result = cls(counts.num_layers)
        result.layer_correlations = correlations = _correlations(counts)
        result.per_layer_accuracy = {layer: float(value) for layer, value in enumerate(correlations[0])}
        for layer in range(counts.num_layers - 1):
            later = correlations[layer, layer + 1 :]
            if (later > ENOUGH).all():
                result.predictable_from_layer, result.avg_prediction_accuracy = layer, float(later.mean())
                break
        result.table_recall = recall = _recall_from_one(counts) if table_recall is None else table_recall
        if not np.isnan(recall).all():
            result.avg_table_recall = float(np.nanmean(recall))
            good = recall > ENOUGH
            first = next((layer for layer in range(1, counts.num_layers) if good[layer:].all()), 0)
            result.foretold_from_layer = first - 1
        return result


def _correlations(counts: RoutingCounts) -> Array:
    """Of indicator vectors: (shared − m n) / √(m (1 − m) n (1 − n)), where m and n are the shares of ones in both."""
    places = np.maximum(counts["layer_tokens"] * counts.num_experts, 1)
    shared = counts["layer_shared"] / places
    ones = counts["layer_sizes"] / np.maximum(places, places.T)  # [i, j]: of layer i, compared with j
    other = ones.T
    with np.errstate(divide="ignore", invalid="ignore"):
        upper = (shared - ones * other) / np.sqrt(ones * (1 - ones) * other * (1 - other))
    # Layers that always choose everything, or were never compared, tell nothing.
    upper = np.where((counts["layer_tokens"] > 0) & np.isfinite(upper), upper, 0.0)
    both: Array = (upper + upper.T).astype(np.float32)
    np.fill_diagonal(both, np.where(counts["tokens"].sum(0) > 0, 1.0, 0.0))
    return both


def _recall_from_one(counts: RoutingCounts) -> Array:
    """Share of the selections after a known expert of the layer before that are among its top_k most frequent ones."""
    table = counts["transitions"]
    best = np.partition(table, counts.num_experts - counts.top_k, axis=-1)[..., counts.num_experts - counts.top_k :]
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = best.sum((1, 2)) / table.sum((1, 2))
    return result
