"""Sections on relations: pairs of experts, transitions between layers, predictors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_moe.routing import measures
from onnx_moe.routing.experts import ExpertCooccurrence
from onnx_moe.routing.scoreboard import scored_part

if TYPE_CHECKING:
    from onnx_moe.routing.profile import RoutingProfile

#: Pairs of a layer and of all layers, and followers of an expert.
PAIRS, TOP_PAIRS, FOLLOWERS = 10, 20, 4
#: Tokens that must have chosen a pair before its lift says anything.
ENOUGH_PAIRS = 10


def cooccurrence(profile: RoutingProfile) -> dict[str, Any]:
    """The pairs with the greatest lift, of each layer and of all; and the most frequent ones, summed over layers."""
    layers = []
    for layer in range(profile.model.num_layers):
        found = ExpertCooccurrence.of(profile.counts, [layer], num_pairs=0)
        assert found.lift is not None
        rows, columns = np.triu_indices(profile.model.num_experts, 1)
        pairs, lift = found.cooccurrence_matrix[rows, columns], found.lift[rows, columns]
        order = np.argsort(-np.where(pairs >= ENOUGH_PAIRS, lift, -1.0), kind="stable")[:PAIRS]
        top = [
            {"experts": [rows[i], columns[i]], "count": pairs[i], "lift": lift[i]}
            for i in order
            if pairs[i] >= ENOUGH_PAIRS
        ]
        layers.append({"layer": layer, "top": top})
    strongest = [{**pair, "layer": entry["layer"]} for entry in layers for pair in entry["top"]]  # type: ignore[attr-defined]
    strongest.sort(key=lambda pair: -pair["lift"])
    summed = ExpertCooccurrence.of(profile.counts, range(profile.model.num_layers), num_pairs=TOP_PAIRS)
    frequent = [{"experts": [first, second], "count": count} for first, second, count in summed.top_pairs]
    return {"top_pairs": frequent, "strongest_pairs": strongest[:TOP_PAIRS], "per_layer": layers}


def predictability(profile: RoutingProfile) -> dict[str, Any]:
    """How layers tell each other's choices."""
    found = profile.predictability
    return {
        "predictable_from_layer": found.predictable_from_layer,
        "avg_prediction_accuracy": found.avg_prediction_accuracy,
        "per_layer_from_layer0": found.per_layer_accuracy,
        "foretold_from_layer": found.foretold_from_layer,
        "avg_table_recall": found.avg_table_recall,
        "per_layer_from_previous": found.table_recall,
    }


def transitions(profile: RoutingProfile) -> dict[str, Any]:
    """The experts that follow each expert of the layer before."""
    return {"per_layer": [_transitions(profile, layer) for layer in range(profile.model.num_layers)]}


def _transitions(profile: RoutingProfile, layer: int) -> dict[str, Any] | None:
    table = profile.counts["transitions"][layer].astype(np.int64)
    tokens = int(profile.counts["transition_tokens"][layer])
    if tokens == 0:
        return None
    # A row counts top_k followers for each use of its expert.
    uses = np.maximum(table.sum(1, keepdims=True) / profile.model.top_k, 1.0)
    best = np.argsort(-table, axis=1, kind="stable")[:, :FOLLOWERS]
    probability = np.take_along_axis(table / uses, best, 1)
    return {
        "layer": layer,
        "from_layer": layer - 1,
        "tokens": tokens,
        "mutual_information_bits": measures.mutual_information(table),
        "top": [
            [[expert, chance] for expert, chance in zip(ids, chances, strict=True) if chance > 0]
            for ids, chances in zip(best, probability, strict=True)
        ],
    }


def predictors(profile: RoutingProfile) -> dict[str, Any]:
    """The scoreboard."""
    top_k = profile.model.top_k
    tokens = 0
    if profile.sample is not None:
        part = scored_part(profile.sample)
        tokens = len(part.experts) // (top_k * len(np.unique(part.layers)))
    return {
        "sampled_tokens": tokens,
        "budgets": [top_k, 2 * top_k],
        "scores": [
            {
                "predictor": score.predictor,
                "budget": score.budget,
                "recall": score.recall,
                "precision": score.precision,
                "mass_recall": score.mass_recall,
                "whole_set": score.whole_set,
                "per_layer_recall": score.per_layer_recall,
            }
            for score in profile.scores
        ],
    }
