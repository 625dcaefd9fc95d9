"""A profiler for programs that have the routing in hand: expert ids go in layer by layer, reports come out."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.counts import RoutingCounts
from onnx_moe.routing.experts import (
    COLD_THRESHOLD,
    HOT_THRESHOLD,
    ExpertCooccurrence,
    LayerRoutingProfile,
    LoadThresholds,
    RoutingPredictability,
)
from onnx_moe.routing.profile import SAMPLE_IDS, ProfiledModel, RoutingProfile
from onnx_moe.routing.recorded_arrays import expert_ids_of, weights_of
from onnx_moe.routing.sampling import PassKeeper, sample_of
from onnx_moe.routing.simulation import simulate_routing
from onnx_moe.routing.sketch import RoutingSketch
from onnx_moe.routing.trace import DECODE, PREFILL, Call, RoutingTrace, check_sizes, phase_number

Array = NDArray[Any]


class MoERoutingProfiler:
    """Profiles routing as it is recorded. Memory does not grow with the tokens; any thread may record.

    hot_threshold, cold_threshold: times the mean load from which an expert is hot, below which it is cold.
    sample_ids: expert ids of calls that are kept in full, for the report on caches and predictors.
    """

    def __init__(
        self,
        num_experts: int,
        num_layers: int,
        top_k: int = 2,
        hot_threshold: float = HOT_THRESHOLD,
        cold_threshold: float = COLD_THRESHOLD,
        *,
        name: str = "",
        expert_bytes: int | None = None,
        sample_ids: int = SAMPLE_IDS,
    ) -> None:
        check_sizes(num_experts, num_layers, top_k)
        self.num_experts = num_experts
        self.num_layers = num_layers
        self.top_k = top_k
        self._thresholds = LoadThresholds(hot_threshold, cold_threshold)
        layer_names = tuple(str(layer) for layer in range(num_layers))
        self._model = ProfiledModel(name, layer_names, num_experts, top_k, expert_bytes)
        self._sketch = RoutingSketch(num_experts, num_layers, top_k)
        self._kept = PassKeeper(sample_ids, num_layers, top_k)
        self._lock = threading.Lock()
        self._profile: RoutingProfile | None = None

    @property
    def hot_threshold(self) -> float:
        """Times the mean load above which an expert is hot."""
        return self._thresholds.hot

    @property
    def cold_threshold(self) -> float:
        """Times the mean load below which an expert is cold."""
        return self._thresholds.cold

    def record_routing(
        self,
        layer_idx: int,
        expert_ids: Any,
        expert_probs: Any = None,
        *,
        phase: str | None = None,
        request: int = 0,
    ) -> None:
        """Records a call of a layer.

        expert_ids: integers [T, top_k], best first, or flat; numpy, Torch or nested lists. expert_probs: weights of the
        chosen experts [T, top_k], or probabilities of all before top-k [T, num_experts] (where top_k = num_experts,
        these); not negative. phase: "prefill" or "decode"; None: one token decodes. Raises InvalidInputError for
        another layer, shape, id or weight; nothing is recorded then.
        """
        self._check_layer(layer_idx)
        ids = expert_ids_of(expert_ids, self.num_experts, self.top_k)
        weights, probabilities = weights_of(ids, expert_probs, self.num_experts)
        number = (DECODE if len(ids) == 1 else PREFILL) if phase is None else phase_number(phase)
        call = Call(layer_idx, ids, weights, number, request)
        trace = RoutingTrace.of_calls([call], self.num_experts, self.num_layers)
        with self._lock:
            self._sketch.add(trace, probabilities)
            self._kept.add(call)
            self._profile = None

    def _check_layer(self, layer_idx: int) -> None:
        if isinstance(layer_idx, bool) or not isinstance(layer_idx, int | np.integer):
            raise InvalidInputError(f"layer_idx is {layer_idx!r}, but must be an integer.")
        if not 0 <= layer_idx < self.num_layers:
            raise InvalidInputError(f"layer_idx is {layer_idx}, but layers are numbered 0 to {self.num_layers - 1}.")

    def record_trace(self, trace: RoutingTrace) -> None:
        """Records all calls of a trace."""
        with self._lock:
            self._sketch.add(trace)
            sample = sample_of(trace, self._kept.expert_ids) if self._kept.expert_ids > 0 else None
            for call in sample.calls() if sample is not None else ():
                self._kept.add(call)
            self._profile = None

    def profile(self) -> RoutingProfile:
        """Everything that is known so far, to save, merge, compare and report."""
        with self._lock:
            if self._profile is None:
                sample = self._kept.sample(self.num_experts, self._model.layer_names)
                self._profile = RoutingProfile(
                    self._model,
                    self._sketch.counts(),
                    sample,
                    source="record_routing",
                    thresholds=self._thresholds,
                    notes=self._kept.notes(sample),
                )
            return self._profile

    @property
    def counts(self) -> RoutingCounts:
        """The counts so far."""
        return self.profile().counts

    @property
    def layer_profiles(self) -> dict[int, LayerRoutingProfile]:
        """The load of each layer; one without tokens has an empty profile."""
        return dict(enumerate(self.profile().layers))

    def get_hot_experts(self, layer_idx: int | None = None) -> list[int]:
        """Hot experts of a layer, or of any (None). Numbers of different layers are unrelated: prefer one layer."""
        return sorted({expert for profile in self._chosen(layer_idx) for expert in profile.get_hot_experts()})

    def get_cold_experts(self, layer_idx: int | None = None) -> list[int]:
        """Cold experts of a layer, or of any (None)."""
        return sorted({expert for profile in self._chosen(layer_idx) for expert in profile.get_cold_experts()})

    def get_dead_experts(self, layer_idx: int | None = None) -> list[int]:
        """Dead experts of a layer, or those dead in every layer that had tokens (None)."""
        lists = [set(profile.get_dead_experts()) for profile in self._chosen(layer_idx)]
        return sorted(set.intersection(*lists)) if lists else []

    def _chosen(self, layer_idx: int | None) -> list[LayerRoutingProfile]:
        """Of one layer, or of all; those with tokens."""
        if layer_idx is not None:
            self._check_layer(layer_idx)
        profiles = self.profile().layers
        chosen = profiles if layer_idx is None else (profiles[layer_idx],)
        return [profile for profile in chosen if profile.total_tokens]

    def get_prefetch_recommendations(self, layer_idx: int, num_experts: int = 4) -> list[int]:
        """The num_experts experts of a layer that were chosen most, unused ones last."""
        self._check_layer(layer_idx)
        if num_experts < 0:
            raise InvalidInputError(f"num_experts is {num_experts}, but must be at least 0.")
        loads = self.counts.counts[:, layer_idx].sum(0)
        best: list[int] = np.argsort(-loads, kind="stable")[:num_experts].tolist()
        return best

    @property
    def cooccurrence(self) -> ExpertCooccurrence:
        """Pairs summed over all layers, which says something for one layer only: see `layer_cooccurrence`."""
        return ExpertCooccurrence.of(self.counts, range(self.num_layers))

    def layer_cooccurrence(self, layer_idx: int) -> ExpertCooccurrence:
        """Pairs of a layer, with their lift."""
        self._check_layer(layer_idx)
        return ExpertCooccurrence.of(self.counts, [layer_idx])

    @property
    def predictability(self) -> RoutingPredictability:
        """How layers tell each other's choices."""
        return self.profile().predictability

    def generate_report(self) -> dict[str, Any]:
        """The report: the document of the profile (docs/routing.md)."""
        return self.profile().document()

    def save_report(self, path: str | Path) -> None:
        """Writes the report as JSON; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.generate_report(), indent=1, allow_nan=False), encoding="utf-8")

    def print_summary(self, console: Console | None = None) -> None:
        """Prints a table of the layers."""
        table = Table(title=f"{self.num_experts} experts, top-{self.top_k}, {self.num_layers} layers")
        for heading in ("layer", "tokens", "active", "dead", "CV", "entropy", "Gini", "hot"):
            table.add_column(heading, justify="right")
        for profile in self._chosen(None):
            measured = (profile.load_balance_cv_all, profile.entropy, profile.gini_coefficient)
            sizes = (profile.layer_idx, profile.total_tokens, profile.active_experts, profile.dead_experts)
            figures = (f"{value:.3f}" for value in measured)
            table.add_row(*map(str, sizes), *figures, str(len(profile.get_hot_experts())))
        (console or Console()).print(table)

    def plot_routing_heatmap(self, output_path: str | Path | None = None, show: bool = False) -> None:
        """Draws four panels: shares of selections by layer, lift of pairs in the least even layer, correlations of
        layers, evenness by layer. Into a picture, on the screen (show), or both. Needs matplotlib.

        Raises InvalidInputError where neither is asked for.
        """
        from onnx_moe.routing.heatmap import plot

        plot(self.profile(), None if output_path is None else Path(output_path), show)


def simulate_routing_for_model(model_name: str, num_samples: int = 1000, seed: int = 42) -> MoERoutingProfiler:
    """A profiler that has recorded simulated routing (`simulate_routing`) of a known model: num_samples decoded tokens.

    Raises InvalidInputError ("Unknown model …") for another name.
    """
    from onnx_moe.routing.models import known_model

    model = known_model(model_name)
    profiler = MoERoutingProfiler(
        model.num_experts, model.num_moe_layers, model.top_k, name=model.name, expert_bytes=model.expert_bytes()
    )
    profiler.record_trace(simulate_routing(model, num_samples, seed=seed))
    return profiler
