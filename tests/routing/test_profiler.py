"""The profiler's own behaviour: sections 5.1 to 5.4 of the specification (docs/test-map.md), figure by figure, and what
was wrong in the originals (5.5).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from onnx_moe import OnnxMoeError
from onnx_moe.errors import InvalidInputError
from onnx_moe.routing import (
    ExpertCooccurrence,
    ExpertLoadStats,
    LayerRoutingProfile,
    MoERoutingProfiler,
    RoutingPredictability,
    RoutingProfile,
    heatmap,
    simulate_routing_for_model,
)


def random_ids(random: np.random.Generator, tokens: int, experts: int, top_k: int) -> np.ndarray:
    return np.stack([random.permutation(experts)[:top_k] for _ in range(tokens)])


def profiler_of(tokens: int = 100, layers: int = 2, experts: int = 8, used: int | None = None) -> MoERoutingProfiler:
    random = np.random.default_rng(0)
    profiler = MoERoutingProfiler(experts, layers, top_k=2)
    for layer in range(layers):
        profiler.record_routing(layer, random_ids(random, tokens, used or experts, 2), random.random((tokens, 2)))
    return profiler


class TestRecords:
    def test_primary_selection_rate(self) -> None:
        assert ExpertLoadStats(3).primary_selection_rate == 0.0
        stats = ExpertLoadStats(3, total_activations=100, rank_distribution={0: 60, 1: 40})
        assert stats.primary_selection_rate == 0.6

    def test_defaults(self) -> None:
        stats = ExpertLoadStats(3)
        assert (stats.total_activations, stats.activation_rate) == (0, 0.0)
        assert (stats.avg_probability, stats.std_probability, stats.rank_distribution) == (0.0, 0.0, {})
        assert [stats.is_hot, stats.is_cold, stats.is_dead] == [False] * 3
        pairs = ExpertCooccurrence(4)
        assert pairs.cooccurrence_matrix.dtype == np.int64
        assert pairs.cooccurrence_matrix.shape == (4, 4)
        assert not pairs.cooccurrence_matrix.any()
        assert pairs.conditional_probs is None
        assert pairs.top_pairs == []
        layer = LayerRoutingProfile(1)
        assert (layer.layer_idx, layer.total_tokens) == (1, 0)
        assert layer.get_hot_experts() == layer.get_cold_experts() == layer.get_dead_experts() == []
        predictability = RoutingPredictability(3)
        assert predictability.layer_correlations.dtype == np.float32
        assert predictability.layer_correlations.shape == (3, 3)
        assert predictability.predictable_from_layer == -1
        assert predictability.avg_prediction_accuracy == 0.0


class TestRecording:
    @pytest.mark.parametrize("layer", [-1, 2])
    def test_layers_are_checked(self, layer: int) -> None:
        with pytest.raises(ValueError, match=f"layer_idx is {layer}, but layers are numbered 0 to 1"):
            MoERoutingProfiler(4, 2).record_routing(layer, [[0, 1]])

    @pytest.mark.parametrize(
        ("ids", "probs", "message"),
        [
            ([[0, 4]], None, r"holds 4 in row 0, slot 1, but experts are numbered 0 to 3"),
            ([[0, -1]], None, r"holds -1 in row 0, slot 1"),
            ([[0, 1, 2]], None, r"shape \[1, 3\], but must be \[T, 2\] or flat"),
            ([0, 1, 2], None, r"shape \[3\]"),
            ([[0.0, 1.0]], None, r"float64, but must be integers"),
            ([[0, 1]], [[1.0]], r"expert_probs has shape \[1, 1\], but must be \[1, 2\].*or \[1, 4\]"),
        ],
    )
    def test_ids_and_weights_are_checked(self, ids: object, probs: object, message: str) -> None:
        profiler = MoERoutingProfiler(4, 2)
        with pytest.raises(InvalidInputError, match=message):
            profiler.record_routing(0, ids, probs)
        assert [each.total_tokens for each in profiler.layer_profiles.values()] == [0, 0]

    @pytest.mark.parametrize(
        ("layer", "number", "probs", "message"),
        [
            (0.5, 0, None, "layer_idx is 0.5, but must be an integer"),
            (0, 2**40, None, "request 1099511627776 does not fit into 32 bits"),
            (0, 0, [[0.5, float("nan")]], "expert_probs holds nan, but weights are numbers of at least 0"),
            (0, 0, [[2.0, -0.5]], "expert_probs holds -0.5.*not the logits"),
            (0, 0, [["a", "b"]], "expert_probs is <U1, but must be numbers"),
        ],
    )
    def test_other_arguments_are_checked(self, layer: float, number: int, probs: object, message: str) -> None:
        profiler = MoERoutingProfiler(4, 2)
        with pytest.raises(InvalidInputError, match=message):
            profiler.record_routing(layer, [[0, 1]], probs, request=number)  # type: ignore[arg-type]
        assert profiler.counts["tokens"].sum() == 0

    @pytest.mark.parametrize("layer", [-1, 2])
    def test_layers_of_questions_are_checked(self, layer: int) -> None:
        profiler = profiler_of()
        for ask in (profiler.get_prefetch_recommendations, profiler.layer_cooccurrence, profiler.get_dead_experts):
            with pytest.raises(InvalidInputError, match=f"layer_idx is {layer}, but layers are numbered 0 to 1"):
                ask(layer)
        with pytest.raises(InvalidInputError, match="num_experts is -1"):
            profiler.get_prefetch_recommendations(0, -1)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_weights_of_torch(self, dtype: torch.dtype) -> None:
        """Also such as training code has: with a gradient, in any float type."""
        profiler = MoERoutingProfiler(4, 1)
        profiler.record_routing(
            0, torch.tensor([[0, 1]]), torch.tensor([[0.75, 0.25]], dtype=dtype, requires_grad=True)
        )
        stats = profiler.layer_profiles[0].expert_stats
        assert (stats[0].avg_probability, stats[1].avg_probability) == (0.75, 0.25)

    def test_weights_of_some_calls(self) -> None:
        """A mean is over the uses that had a weight."""
        profiler = MoERoutingProfiler(4, 1)
        profiler.record_routing(0, [[0, 1]], [[0.75, 0.25]])
        profiler.record_routing(0, [[0, 1]])
        stats = profiler.layer_profiles[0].expert_stats
        assert (stats[0].avg_probability, stats[0].total_activations) == (0.75, 2)
        report = profiler.generate_report()
        assert (report["recorded"]["has_weights"], report["recorded"]["has_all_weights"]) == (True, False)
        assert report["balance"]["decode"]["basis"] == "counts"

    def test_all_experts_chosen(self) -> None:
        """top_k = num_experts: [T, E] are the probabilities of the experts by number, not of the slots."""
        profiler = MoERoutingProfiler(2, 1, top_k=2)
        profiler.record_routing(0, [[1, 0]], [[0.25, 0.75]])
        assert profiler.layer_profiles[0].expert_stats[1].avg_probability == 0.75

    def test_phase_is_checked(self) -> None:
        with pytest.raises(InvalidInputError, match="phase='warm' is unknown"):
            MoERoutingProfiler(4, 2).record_routing(0, [[0, 1]], phase="warm")

    def test_what_ids_may_be(self) -> None:
        for ids in (
            [0, 1, 1, 2],
            [[0, 1], [1, 2]],
            np.array([[0, 1], [1, 2]], np.uint8),
            torch.tensor([[0, 1], [1, 2]]),
        ):
            profiler = MoERoutingProfiler(3, 1)
            profiler.record_routing(0, ids)
            assert profiler.counts.counts.sum((0, 1)).tolist() == [1, 2, 1]

    def test_phases_are_kept_apart(self) -> None:
        profiler = MoERoutingProfiler(3, 1)
        profiler.record_routing(0, [[0, 1], [0, 1]])
        profiler.record_routing(0, [[1, 2]])
        profiler.record_routing(0, [[0, 2], [1, 2]], phase="decode")
        assert profiler.counts["tokens"][:, 0].tolist() == [2, 3]
        assert profiler.counts.counts[:, 0].tolist() == [[2, 2, 0], [1, 2, 3]]

    def test_later_changes_of_the_array_change_nothing(self) -> None:
        profiler, ids = MoERoutingProfiler(4, 1), np.array([[0, 1]], np.int32)
        profiler.record_routing(0, ids)
        before = profiler.generate_report()
        ids[:] = 3
        assert profiler.generate_report()["maps"] == before["maps"]
        assert profiler.profile().sample is not None
        assert profiler.profile().sample.experts.tolist() == [0, 1]  # type: ignore[union-attr]

    def test_results_follow_what_is_recorded(self) -> None:
        profiler = MoERoutingProfiler(4, 1)
        profiler.record_routing(0, [[0, 1]])
        assert profiler.layer_profiles[0].total_tokens == 1
        profiler.record_routing(0, [[0, 1]])
        assert profiler.layer_profiles[0].total_tokens == 2


class TestLayers:
    def test_two_layers_of_a_hundred_tokens(self) -> None:
        profiles = profiler_of().layer_profiles
        assert sorted(profiles) == [0, 1]
        for profile in profiles.values():
            assert profile.total_tokens == 100
            assert profile.active_experts > 0

    def test_loads_by_hand(self) -> None:
        profiler = MoERoutingProfiler(4, 1, top_k=1)
        probs = np.concatenate([np.full(60, 0.5), np.full(38, 0.25), [1.0, 0.0]])[:, None]
        profiler.record_routing(0, [[0]] * 60 + [[1]] * 38 + [[2]] * 2, probs)
        profile = profiler.layer_profiles[0]
        assert profile.get_hot_experts() == [0, 1]  # above 1.5 · 25
        assert profile.get_cold_experts() == [2]  # below 0.5 · 25
        assert profile.get_dead_experts() == profile.unseen_experts == [3]
        assert profile.expected_uses == 25
        assert profile.max_over_mean == pytest.approx(2.4)
        active, loads = np.array([60, 38, 2]), np.array([60, 38, 2, 0])
        assert profile.load_balance_cv == pytest.approx(active.std() / active.mean())
        assert profile.load_balance_cv_all == pytest.approx(loads.std() / 25)
        share = active / 100
        assert profile.entropy == pytest.approx(-(share * np.log(share)).sum() / np.log(4))
        stats = list(profile.expert_stats.values())
        assert [each.total_activations for each in stats] == [60, 38, 2, 0]
        assert [each.activation_rate for each in stats] == [0.6, 0.38, 0.02, 0.0]
        assert stats[0].avg_probability == pytest.approx(0.5)
        assert stats[0].std_probability == pytest.approx(0.0, abs=1e-7)
        assert stats[2].avg_probability == pytest.approx(0.5)
        assert stats[2].std_probability == pytest.approx(0.5)
        assert [each.is_hot for each in stats] == [True, True, False, False]
        assert stats[2].is_cold
        assert stats[3].is_dead
        assert profile.unseen_rate_bound == pytest.approx(3 / 100, rel=0.01)

    def test_thresholds_reach_the_report_and_the_file(self, tmp_path: Path) -> None:
        ids = [[0]] * 60 + [[1]] * 40
        profiler = MoERoutingProfiler(2, 1, top_k=1, hot_threshold=1.1, cold_threshold=0.9)
        profiler.record_routing(0, ids)
        path = tmp_path / "profile.npz"
        profiler.profile().save(path)
        for report in (profiler.generate_report(), RoutingProfile.load(path).document()):
            section = report["load_balance"]
            assert (section["hot_threshold"], section["cold_threshold"]) == (1.1, 0.9)
            assert (section["hot_experts"], section["cold_experts"]) == ([0], [1])
            assert (report["per_layer"][0]["hot_experts"], report["per_layer"][0]["cold_experts"]) == ([0], [1])
        layer = profiler.layer_profiles[0]
        assert (layer.get_hot_experts(1.3), layer.get_cold_experts(0.7)) == ([], [])
        assert (layer.get_hot_experts(0.5), layer.get_cold_experts(1.3)) == ([0, 1], [0, 1])
        with pytest.raises(InvalidInputError, match="hot_threshold is nan"):
            MoERoutingProfiler(2, 1, hot_threshold=float("nan"))

    def test_thresholds_are_used(self) -> None:
        ids = [[0]] * 60 + [[1]] * 40
        strict = MoERoutingProfiler(2, 1, top_k=1, hot_threshold=1.1, cold_threshold=0.9)
        strict.record_routing(0, ids)
        assert (strict.get_hot_experts(), strict.get_cold_experts()) == ([0], [1])
        loose = MoERoutingProfiler(2, 1, top_k=1)
        loose.record_routing(0, ids)
        assert (loose.get_hot_experts(), loose.get_cold_experts()) == ([], [])

    def test_ranks(self) -> None:
        profiler = MoERoutingProfiler(3, 1)
        profiler.record_routing(0, [[0, 1], [0, 2], [1, 0]])
        stats = profiler.layer_profiles[0].expert_stats
        assert stats[0].rank_distribution == {0: 2, 1: 1}
        assert stats[0].primary_selection_rate == pytest.approx(2 / 3)

    def test_dead_experts(self) -> None:
        assert profiler_of(used=6).get_dead_experts() == [6, 7]
        assert profiler_of(used=6).get_dead_experts(1) == [6, 7]

    def test_few_tokens_call_nobody_dead(self) -> None:
        profiler = profiler_of(tokens=39, used=6)  # 9.75 uses at balance
        assert profiler.get_dead_experts() == []
        assert profiler.layer_profiles[0].unseen_experts == [6, 7]

    def test_unions_and_intersections(self) -> None:
        profiler = MoERoutingProfiler(4, 3, top_k=1)
        profiler.record_routing(0, [[0]] * 90 + [[1]] * 10)
        profiler.record_routing(1, [[1]] * 90 + [[3]] * 10)
        assert profiler.get_hot_experts() == [0, 1]
        assert profiler.get_hot_experts(1) == [1]
        assert profiler.get_cold_experts() == [1, 3]
        assert profiler.get_dead_experts() == [2]  # of the layers with tokens
        assert profiler.get_dead_experts(0) == [2, 3]
        assert profiler.get_hot_experts(2) == []
        with pytest.raises(InvalidInputError, match="layer_idx is 3"):
            profiler.get_hot_experts(3)

    def test_prefetch_recommendations(self) -> None:
        profiler = MoERoutingProfiler(8, 1)
        profiler.record_routing(0, [[0, 1]] * 50 + [[2, 3]] * 10 + [[4, 5]] * 5)
        best = profiler.get_prefetch_recommendations(layer_idx=0, num_experts=4)
        assert best == [0, 1, 2, 3]
        assert profiler.get_prefetch_recommendations(0, 100) == [0, 1, 2, 3, 4, 5, 6, 7]


class TestPairs:
    def test_counts(self) -> None:
        profiler = MoERoutingProfiler(4, 1)
        profiler.record_routing(0, [[0, 1], [1, 0], [0, 1], [2, 3]])
        found = profiler.cooccurrence
        assert found.cooccurrence_matrix.shape == (4, 4)
        assert found.cooccurrence_matrix[0, 1] == found.cooccurrence_matrix[1, 0] == 3
        assert found.cooccurrence_matrix[0, 0] == 3
        assert found.top_pairs[0] == (0, 1, 3)

    def test_conditional_is_not_understated(self) -> None:
        profiler = MoERoutingProfiler(4, 1)
        profiler.record_routing(0, [[0, 1], [1, 0], [0, 2], [2, 3]])
        conditional = profiler.cooccurrence.conditional_probs
        assert conditional is not None
        assert conditional[0, 1] == pytest.approx(2 / 3)
        assert conditional[3, 2] == 1.0

    def test_lift_of_one_layer(self) -> None:
        profiler = MoERoutingProfiler(4, 2)
        profiler.record_routing(0, [[0, 1], [1, 0], [0, 2], [2, 3]])
        profiler.record_routing(1, [[2, 3]] * 9)
        lift = profiler.layer_cooccurrence(0).lift
        assert lift is not None
        assert lift[0, 1] == pytest.approx((2 / 4) / ((3 / 4) * (2 / 4)))
        assert lift[1, 2] == 0.0
        assert profiler.cooccurrence.lift is None

    def test_pairs_of_a_random_layer_equal_loops(self) -> None:
        ids = random_ids(np.random.default_rng(4), 70, 9, 3)
        profiler = MoERoutingProfiler(9, 1, top_k=3)
        profiler.record_routing(0, ids)
        expected = np.zeros((9, 9), np.int64)
        for row in ids.tolist():
            for a in row:
                for b in row:
                    expected[a, b] += 1
        np.testing.assert_array_equal(profiler.cooccurrence.cooccurrence_matrix, expected)


class TestPredictability:
    def test_identical_layers_with_repeated_experts(self) -> None:
        """Section 5.2: what the originals assert, with rows that hold an expert twice."""
        ids = np.random.default_rng(42).integers(0, 8, (100, 2))
        profiler = MoERoutingProfiler(8, 4)
        for layer in range(4):
            profiler.record_routing(layer, ids)
        np.testing.assert_allclose(profiler.predictability.layer_correlations, 1, rtol=1e-6)

    def test_correlations_are_pearsons_with_repeated_experts(self) -> None:
        random = np.random.default_rng(3)
        ids = [random.integers(0, 6, (50, 3)) for _ in range(2)]
        ids[1][:25] = ids[0][:25]
        profiler = MoERoutingProfiler(6, 2, top_k=3)
        one_hot = np.zeros((2, 50, 6))
        for layer in range(2):
            profiler.record_routing(layer, ids[layer])
            np.put_along_axis(one_hot[layer], ids[layer], 1.0, 1)
        expected = np.corrcoef(one_hot.reshape(2, -1))
        np.testing.assert_allclose(profiler.predictability.layer_correlations, expected, atol=1e-6)

    def test_identical_layers(self) -> None:
        ids = random_ids(np.random.default_rng(1), 120, 16, 2)
        profiler = MoERoutingProfiler(16, 4)
        for layer in range(4):
            profiler.record_routing(layer, ids)
        found = profiler.predictability
        assert (found.layer_correlations > 0.9).all()
        report = profiler.generate_report()["predictability"]
        assert report["per_layer_from_layer0"] == dict.fromkeys("0123", 1.0)
        assert (found.predictable_from_layer, found.avg_prediction_accuracy) == (0, 1.0)
        assert found.per_layer_accuracy == dict.fromkeys(range(4), 1.0)

    def test_one_expert_after_another_is_foretold(self) -> None:
        ids = np.random.default_rng(1).integers(0, 16, (600, 1))
        profiler = MoERoutingProfiler(16, 3, top_k=1)
        for token in ids:
            for layer, shift in enumerate((0, 5, 11)):  # numbering is another in each layer
                profiler.record_routing(layer, [(token + shift) % 16])
        found = profiler.predictability
        assert found.foretold_from_layer == 0
        assert found.avg_table_recall > 0.9
        assert (found.predictable_from_layer, found.avg_prediction_accuracy) == (-1, 0.0)
        assert (np.abs(found.layer_correlations[0, 1:]) < 0.2).all()

    def test_unrelated_layers(self) -> None:
        random = np.random.default_rng(2)
        profiler = MoERoutingProfiler(32, 3)
        for layer in range(3):
            profiler.record_routing(layer, random_ids(random, 800, 32, 2))
        found = profiler.predictability
        assert found.predictable_from_layer == found.foretold_from_layer == -1
        assert found.avg_table_recall < 0.2
        off_diagonal = found.layer_correlations[~np.eye(3, dtype=bool)]
        assert (np.abs(off_diagonal) < 0.1).all()

    def test_correlations_are_pearsons(self) -> None:
        random = np.random.default_rng(3)
        ids = [random_ids(random, 50, 6, 2) for _ in range(3)]
        ids[2][:25] = ids[0][:25]
        profiler = MoERoutingProfiler(6, 3)
        for layer in range(3):
            profiler.record_routing(layer, ids[layer])
        one_hot = np.zeros((3, 50, 6))
        for layer in range(3):
            np.put_along_axis(one_hot[layer], ids[layer], 1.0, 1)
        expected = np.corrcoef(one_hot.reshape(3, -1))
        np.testing.assert_allclose(profiler.predictability.layer_correlations, expected, atol=1e-6)


class TestReport:
    KEYS = ("summary", "load_balance", "cooccurrence", "predictability", "per_layer")

    def test_keys_and_totals(self) -> None:
        report = profiler_of(tokens=50).generate_report()
        assert set(self.KEYS) <= set(report)
        assert report["summary"]["total_tokens_profiled"] == 100  # token × layer records
        assert report["summary"]["tokens"] == 50
        assert {"num_experts", "num_layers", "top_k", "avg_load_balance_cv", "avg_entropy", "avg_gini"} <= set(
            report["summary"]
        )
        assert {"hot_experts", "cold_experts", "dead_experts", "prunable_experts"} <= set(report["load_balance"])
        assert {"predictable_from_layer", "avg_prediction_accuracy", "per_layer_from_layer0"} == set(
            report["predictability"]
        ) - {"per_layer_from_previous", "avg_table_recall", "foretold_from_layer"}
        assert {
            "layer",
            "tokens",
            "active_experts",
            "dead_experts",
            "load_balance_cv",
            "entropy",
            "gini",
            "hot_experts",
            "cold_experts",
        } <= set(report["per_layer"][0])

    def test_json_has_plain_numbers(self, tmp_path: Path) -> None:
        profiler = MoERoutingProfiler(8, 3)  # layer 2 stays empty: its entropy is not a number
        random = np.random.default_rng(0)
        for layer in range(2):
            profiler.record_routing(layer, random_ids(random, 30, 8, 2))
        path = tmp_path / "new" / "folder" / "report.json"
        profiler.save_report(path)
        report = json.loads(path.read_text())
        assert report == profiler.generate_report()
        assert type(report["per_layer"][0]["active_experts"]) is int
        assert all(type(expert) is int for expert in report["load_balance"]["hot_experts"])
        assert [layer["layer"] for layer in report["per_layer"]] == [0, 1]
        assert report["summary"]["avg_overlap_lag1"] is not None

    def test_summary_is_printed(self) -> None:
        console = Console(record=True, width=120)
        profiler_of().print_summary(console)
        text = console.export_text()
        assert "8 experts, top-2, 2 layers" in text
        assert "entropy" in text

    def test_heatmap(self, tmp_path: Path) -> None:
        """What the panels show, not only that there is a picture."""
        profiler = profiler_of(used=6)
        figure = Figure()
        heatmap.draw(profiler.profile(), figure)
        shares, pairs, correlations, evenness = (axes for axes in figure.axes if axes.get_title())
        counts = profiler.counts.counts.sum(0)
        np.testing.assert_allclose(shares.images[0].get_array(), counts / counts.sum(1, keepdims=True))
        layer = int(np.argmin([each.entropy for each in profiler.layer_profiles.values()]))
        lift = profiler.layer_cooccurrence(layer).lift
        np.testing.assert_allclose(pairs.images[0].get_array(), np.log2(np.maximum(lift, 0.25)))
        np.testing.assert_allclose(correlations.images[0].get_array(), profiler.predictability.layer_correlations)
        entropy = [each.entropy for each in profiler.layer_profiles.values()]
        np.testing.assert_allclose(evenness.lines[0].get_ydata(), entropy)
        path = tmp_path / "new" / "heatmap.png"
        profiler.plot_routing_heatmap(output_path=path)
        assert path.read_bytes().startswith(b"\x89PNG")
        with pytest.raises(InvalidInputError, match="goes nowhere: give output_path, or show=True"):
            profiler.plot_routing_heatmap()

    def test_an_empty_profiler_reports(self) -> None:
        report = MoERoutingProfiler(8, 2).generate_report()
        assert report["summary"]["total_tokens_profiled"] == 0
        assert report["maps"] == {"prefill": None, "decode": None, "all": None}
        assert report["cache"]["curves"] == []


class TestSimulation:
    @pytest.mark.parametrize(
        ("name", "sizes"),
        [
            ("mixtral", (8, 32, 2)),
            ("glm47", (64, 46, 4)),  # 47 layers, the first of them dense
            ("qwen3_30b", (128, 48, 8)),
            ("deepseek_moe", (64, 27, 6)),
        ],
    )
    def test_sizes(self, name: str, sizes: tuple[int, int, int]) -> None:
        profiler = simulate_routing_for_model(name, num_samples=20)
        assert (profiler.num_experts, profiler.num_layers, profiler.top_k) == sizes
        assert profiler.counts["tokens"][1].tolist() == [20] * sizes[1]
        sample = profiler.profile().sample
        assert sample is not None
        assert (sample.phases == 1).sum() == 20 * sizes[1]

    def test_unknown_model(self) -> None:
        with pytest.raises(ValueError, match=r"Unknown model 'glm-4\.7-flush': use one of glm-4\.7-flash"):
            simulate_routing_for_model("glm-4.7-flush")

    def test_a_seed_draws_the_same(self) -> None:
        first, again, other = (
            simulate_routing_for_model("glm-4.7-flash", 30, seed).generate_report()["summary"] for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other

    def test_memory_is_bounded(self) -> None:
        profiler = MoERoutingProfiler(8, 1, sample_ids=50)
        for _ in range(200):
            profiler.record_routing(0, [[0, 1]])
        sample = profiler.profile().sample
        assert sample is not None
        assert len(sample.experts) == 50
        assert profiler.layer_profiles[0].total_tokens == 200

    def test_bad_sizes(self) -> None:
        with pytest.raises(OnnxMoeError, match="top_k is 9, but there are 8 experts"):
            MoERoutingProfiler(8, 1, top_k=9)
