"""How the experts of a layer are used: loads, pairs, and how layers predict each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_moe.routing import measures
from onnx_moe.routing.counts import RoutingCounts

Array = NDArray[Any]

#: Times the mean load from which an expert is hot, and below which it is cold.
HOT_THRESHOLD, COLD_THRESHOLD = 1.5, 0.5


@dataclass
class ExpertLoadStats:
    """The load of one expert of a layer.

    activation_rate: share of the layer's selections. avg_probability, std_probability: of its weights where it was
    chosen. rank_distribution: rank (0 the best) → how often. is_dead: never chosen, and that is no accident
    (`measures.absence_tells`).
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


@dataclass
class LayerRoutingProfile:
    """The load of a layer's experts, all phases together.

    load_balance_cv: standard deviation over mean of the non-zero loads; load_balance_cv_all: of all. entropy: of the
    loads over ln E, gini: over all experts; NaN without tokens. expected_uses: tokens · top_k / E. unseen_experts were
    never chosen; dead_experts are the same ones where their absence tells anything (`measures.absence_tells`).
    """

    layer_idx: int
    total_tokens: int = 0
    active_experts: int = 0
    load_balance_cv: float = 0.0
    load_balance_cv_all: float = 0.0
    entropy: float = 0.0
    gini: float = 0.0
    max_over_mean: float = 0.0
    expected_uses: float = 0.0
    hot_experts: list[int] = field(default_factory=list)
    cold_experts: list[int] = field(default_factory=list)
    dead_experts: list[int] = field(default_factory=list)
    unseen_experts: list[int] = field(default_factory=list)
    expert_stats: list[ExpertLoadStats] = field(default_factory=list)

    @property
    def num_dead(self) -> int:
        """Number of dead experts."""
        return len(self.dead_experts)

    @property
    def unseen_rate_bound(self) -> float:
        """Rate per token that an unseen expert has at most, at 95 % confidence: −ln 0.05 / tokens; NaN without any."""
        return -float(np.log(0.05)) / self.total_tokens if self.total_tokens else float("nan")

    @classmethod
    def of(
        cls,
        counts: RoutingCounts,
        layer: int,
        hot_threshold: float = HOT_THRESHOLD,
        cold_threshold: float = COLD_THRESHOLD,
    ) -> LayerRoutingProfile:
        """The profile of a layer; thresholds are times the mean load."""
        loads = counts.counts[:, layer].sum(0)
        tokens = int(counts["tokens"][:, layer].sum())
        if tokens == 0:
            return cls(layer)
        mean = loads.sum() / loads.size
        unseen = np.flatnonzero(loads == 0).tolist()
        profile = cls(
            layer_idx=layer,
            total_tokens=tokens,
            active_experts=int((loads > 0).sum()),
            load_balance_cv=measures.variation(loads, active_only=True),
            load_balance_cv_all=measures.variation(loads),
            entropy=float(measures.entropy(loads)),
            gini=float(measures.gini(loads)),
            max_over_mean=float(loads.max() / mean),
            expected_uses=float(mean),
            hot_experts=np.flatnonzero(loads > hot_threshold * mean).tolist(),
            cold_experts=np.flatnonzero((loads > 0) & (loads < cold_threshold * mean)).tolist(),
            dead_experts=unseen if measures.absence_tells(loads) else [],
            unseen_experts=unseen,
        )
        profile.expert_stats = _expert_stats(counts, layer, profile)
        return profile


def _expert_stats(counts: RoutingCounts, layer: int, profile: LayerRoutingProfile) -> list[ExpertLoadStats]:
    ranks = counts["rank_counts"][:, layer].sum(0)
    loads = ranks.sum(-1)
    mass, squares = (counts[name][:, layer].sum(0) for name in ("mass", "mass_squares"))
    uses = np.maximum(loads, 1)
    mean = mass / uses
    spread = np.sqrt(np.maximum(squares / uses - mean**2, 0.0))
    hot, cold, dead = (set(ids) for ids in (profile.hot_experts, profile.cold_experts, profile.dead_experts))
    return [
        ExpertLoadStats(
            expert_id=expert,
            total_activations=int(loads[expert]),
            activation_rate=float(loads[expert] / loads.sum()),
            avg_probability=float(mean[expert]),
            std_probability=float(spread[expert]),
            rank_distribution={rank: int(count) for rank, count in enumerate(ranks[expert]) if count},
            is_hot=expert in hot,
            is_cold=expert in cold,
            is_dead=expert in dead,
        )
        for expert in range(loads.size)
    ]


@dataclass
class ExpertCooccurrence:
    """How often two experts are chosen by the same token.

    matrix: int64 [E, E], symmetric, selections of each on the diagonal. conditional [i, j]: P(j | i), with 1 on the
    diagonal of experts that occur. lift [i, j]: P(i and j) / (P(i) · P(j)) over tokens, 1 where they are independent, 0
    on the diagonal; None where several layers are summed, since expert numbers of different layers are unrelated.
    top_pairs: (i, j, count), most frequent first.
    """

    num_experts: int
    matrix: Array = field(init=False)
    conditional: Array | None = None
    lift: Array | None = None
    top_pairs: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.matrix = np.zeros((self.num_experts, self.num_experts), np.int64)

    @classmethod
    def of(cls, counts: RoutingCounts, layers: range | list[int], num_pairs: int = 50) -> ExpertCooccurrence:
        """Of one layer, or summed over several."""
        result = cls(counts.num_experts)
        for layer in layers:
            result.matrix += counts.pairs_of(layer)
        selections = result.matrix.diagonal()
        result.conditional = result.matrix / np.maximum(selections, 1)[:, None]
        if len(layers) == 1:
            tokens = int(counts["tokens"][:, layers[0]].sum())
            expected = np.outer(selections, selections) / max(tokens, 1)
            result.lift = np.divide(result.matrix, expected, out=np.zeros_like(expected), where=expected > 0)
            np.fill_diagonal(result.lift, 0.0)
        rows, columns = np.triu_indices(counts.num_experts, 1)
        pairs = result.matrix[rows, columns]
        order = np.argsort(-pairs, kind="stable")[:num_pairs]
        result.top_pairs = [(int(rows[i]), int(columns[i]), int(pairs[i])) for i in order if pairs[i]]
        return result


@dataclass
class RoutingPredictability:
    """How well a layer's choices tell another's.

    layer_correlations: float32 [L, L], Pearson correlation of the one-hot choices of two layers for the same tokens: it
    sees only layers that number their experts alike, so it is near 0 in trained models. table_recall [L]: share of a
    token's experts among the top_k that follow most often on those of the layer before, NaN for layer 0: what a
    prefetcher can have. predictable_from_layer: the first layer from whose successor on all recalls are above 0.7; −1
    where there is none. avg_prediction_accuracy: mean of the recalls.
    """

    num_layers: int
    layer_correlations: Array = field(init=False)
    table_recall: Array = field(init=False)
    predictable_from_layer: int = -1
    avg_prediction_accuracy: float = 0.0

    def __post_init__(self) -> None:
        self.layer_correlations = np.zeros((self.num_layers, self.num_layers), np.float32)
        self.table_recall = np.full(self.num_layers, np.nan)

    @classmethod
    def of(cls, counts: RoutingCounts, table_recall: Array | None = None) -> RoutingPredictability:
        """table_recall: measured on single tokens [L], as `scoreboard` does; else the recall for one known expert."""
        result = cls(counts.num_layers)
        result.layer_correlations = _correlations(counts)
        result.table_recall = _recall_from_one(counts) if table_recall is None else table_recall
        known = result.table_recall[~np.isnan(result.table_recall)]
        if known.size:
            result.avg_prediction_accuracy = float(known.mean())
            good = result.table_recall > 0.7
            first = next((layer for layer in range(1, counts.num_layers) if good[layer:].all()), None)
            result.predictable_from_layer = -1 if first is None else first - 1
        return result


def _correlations(counts: RoutingCounts) -> Array:
    """Of indicator vectors with top_k ones of E: (mean share − k/E) / (1 − k/E), with the mean share of common ids."""
    base = counts.top_k / counts.num_experts
    tokens = counts["layer_tokens"]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = counts["layer_shared"] / (tokens * counts.top_k)
        upper = np.where(tokens > 0, (share - base) / (1 - base) if base < 1 else 1.0, 0.0)
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
