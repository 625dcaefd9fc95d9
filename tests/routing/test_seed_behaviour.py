"""Section 5 of the specification as a user of the original profiler meets it: names of arguments, attributes and report
keys, on small routings like those that the original's tests are made of.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from onnx_moe.routing import (
    ExpertCooccurrence,
    ExpertLoadStats,
    LayerRoutingProfile,
    MoERoutingProfiler,
    RoutingPredictability,
    simulate_routing_for_model,
)


def test_names_of_parameters() -> None:
    def names(function: object) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]

    profiler = MoERoutingProfiler
    first_five = ["num_experts", "num_layers", "top_k", "hot_threshold", "cold_threshold"]
    assert names(profiler)[:5] == first_five
    assert names(profiler.record_routing)[:3] == ["layer_idx", "expert_ids", "expert_probs"]
    for ask in (profiler.get_hot_experts, profiler.get_cold_experts, profiler.get_dead_experts):
        assert names(ask) == ["layer_idx"]
    assert names(profiler.get_prefetch_recommendations) == ["layer_idx", "num_experts"]
    assert names(profiler.plot_routing_heatmap) == ["output_path", "show"]
    assert names(simulate_routing_for_model) == ["model_name", "num_samples", "seed"]
    defaults = {name: each.default for name, each in inspect.signature(simulate_routing_for_model).parameters.items()}
    assert (defaults["num_samples"], defaults["seed"]) == (1000, 42)


def test_records() -> None:
    """5.1."""
    stats = ExpertLoadStats(expert_id=0, total_activations=100, rank_distribution={0: 60, 1: 40})
    assert stats.primary_selection_rate == 0.6
    assert (ExpertLoadStats(expert_id=0).is_hot, ExpertLoadStats(expert_id=0).primary_selection_rate) == (False, 0.0)
    pairs = ExpertCooccurrence(num_experts=8)
    assert (pairs.cooccurrence_matrix.shape, pairs.conditional_probs, pairs.top_pairs) == ((8, 8), None, [])
    layer = LayerRoutingProfile(layer_idx=0)
    assert (layer.total_tokens, layer.expert_stats, layer.gini_coefficient, layer.dead_experts) == (0, {}, 0.0, 0)
    assert layer.get_hot_experts() == layer.get_cold_experts() == layer.get_dead_experts() == []
    found = RoutingPredictability(num_layers=3)
    assert (found.predictable_from_layer, found.per_layer_accuracy) == (-1, {})


def test_seven_tokens() -> None:
    """5.2 and 5.3: pairs of a handful of tokens, most frequent first, are in the report."""
    profiler = MoERoutingProfiler(num_experts=4, num_layers=1, top_k=2)
    profiler.record_routing(0, np.array([[0, 1], [0, 1], [0, 1], [2, 3], [2, 3], [0, 2], [1, 3]]))
    found = profiler.cooccurrence
    assert found.cooccurrence_matrix[0, 1] == found.cooccurrence_matrix[1, 0] == 3
    assert found.conditional_probs is not None
    pairs = profiler.generate_report()["cooccurrence"]["top_pairs"]
    assert pairs[:2] == [{"experts": [0, 1], "count": 3}, {"experts": [2, 3], "count": 2}]


def test_hot_cold_dead_and_recommended() -> None:
    """5.2."""
    profiler = MoERoutingProfiler(num_experts=8, num_layers=1, top_k=2, hot_threshold=1.5, cold_threshold=0.5)
    profiler.record_routing(0, np.array([[0, 1]] * 100 + [[2, 3]] * 50 + [[4, 5]] * 20))
    assert profiler.get_dead_experts() == [6, 7]
    assert profiler.get_hot_experts(layer_idx=0) == [0, 1]
    assert profiler.get_cold_experts(layer_idx=0) == [4, 5]
    assert profiler.layer_profiles[0].dead_experts == 2
    assert profiler.get_prefetch_recommendations(0, num_experts=4) == [0, 1, 2, 3]


def test_report(tmp_path: Path) -> None:
    """5.3: keys, totals over token × layer, one entry for each layer with tokens, plain numbers in the file."""
    profiler = MoERoutingProfiler(num_experts=8, num_layers=3, top_k=2)
    random = np.random.default_rng(42)
    for layer in range(2):
        probs = random.random((50, 2))
        profiler.record_routing(layer, random.integers(0, 8, (50, 2)), probs / probs.sum(1, keepdims=True))
    profiler.save_report(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"summary", "load_balance", "cooccurrence", "predictability", "per_layer"} <= report.keys()
    assert report["summary"]["total_tokens_profiled"] == 100
    assert [layer["layer"] for layer in report["per_layer"]] == [0, 1]
    assert set(report["predictability"]["per_layer_from_layer0"]) == {"0", "1", "2"}
    assert {"num_hot", "num_cold", "num_dead", "prunable_experts"} <= report["load_balance"].keys()
    assert sorted(profiler.layer_profiles) == [0, 1, 2]


def test_identical_layers() -> None:
    """5.2: rows of random ids, which hold an expert twice now and then."""
    profiler = MoERoutingProfiler(num_experts=8, num_layers=4, top_k=2)
    routing = np.random.default_rng(42).integers(0, 8, size=(100, 2))
    for layer in range(4):
        profiler.record_routing(layer, routing.copy())
    assert (profiler.predictability.layer_correlations > 0.9).all()
    assert profiler.predictability.predictable_from_layer == 0


@pytest.mark.parametrize(("name", "experts", "layers", "top_k"), [("mixtral", 8, 32, 2), ("glm47", 64, 46, 4)])
def test_known_models(name: str, experts: int, layers: int, top_k: int) -> None:
    """5.4, with the true shapes (5.5): the original's glm47 has 64 experts too, but 40 layers and top-2."""
    profiler = simulate_routing_for_model(name, num_samples=20)
    assert (profiler.num_experts, profiler.num_layers, profiler.top_k) == (experts, layers, top_k)
    assert all(profile.total_tokens > 0 for profile in profiler.layer_profiles.values())
    again = simulate_routing_for_model(name, num_samples=20)
    assert profiler.generate_report()["summary"] == again.generate_report()["summary"]


def test_an_unknown_model() -> None:
    with pytest.raises(ValueError, match="Unknown model"):
        simulate_routing_for_model("nonexistent_model")
