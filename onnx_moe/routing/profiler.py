"""A profiler for programs that have the routing in hand: expert ids go in layer by layer, reports come out."""

from __future__ import annotations

import json
from dataclasses import replace
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
    RoutingPredictability,
)
from onnx_moe.routing.profile import SAMPLE_IDS, ProfiledModel, RoutingProfile
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
        self.hot_threshold = hot_threshold
        self.cold_threshold = cold_threshold
        layer_names = tuple(str(layer) for layer in range(num_layers))
        self._model = ProfiledModel(name, layer_names, num_experts, top_k, expert_bytes)
        self._sketch = RoutingSketch(num_experts, num_layers, top_k)
        self._sample_ids = sample_ids
        self._sample: list[Call] = []
        self._sampled_trace: RoutingTrace | None = None
        self._profile: RoutingProfile | None = None

    def record_routing(
        self,
        layer: int,
        expert_ids: Any,
        probs: Any = None,
        *,
        phase: str | None = None,
        request: int = 0,
    ) -> None:
        """Records a call of a layer.

        expert_ids: integers [T, top_k], best first, or flat; numpy, Torch or nested lists. probs: weights of the chosen
        experts [T, top_k], or probabilities of all before top-k [T, num_experts]. phase: "prefill" or "decode"; None:
        one token decodes. Raises InvalidInputError for another layer, shape or id; nothing is recorded then.
        """
        if not 0 <= layer < self.num_layers:
            raise InvalidInputError(f"layer is {layer}, but layers are numbered 0 to {self.num_layers - 1}.")
        ids = self._ids(expert_ids)
        weights, probabilities = self._weights(ids, probs)
        number = (DECODE if len(ids) == 1 else PREFILL) if phase is None else phase_number(phase)
        call = Call(layer, ids, weights, number, request)
        self._sketch.add(RoutingTrace.of_calls([call], self.num_experts, self.num_layers), probabilities)
        self._profile = None
        if self._sample_ids > 0:
            # The first calls: from one that does not fit on, none is kept.
            self._sample_ids -= ids.size
            if self._sample_ids >= 0:
                self._sample.append(call)

    def _ids(self, expert_ids: Any) -> NDArray[np.int32]:
        ids = np.asarray(expert_ids)
        if ids.dtype.kind not in "iu":
            raise InvalidInputError(f"expert_ids is {ids.dtype}, but must be integers [T, {self.top_k}].")
        fits = (ids.ndim == 2 and ids.shape[1] == self.top_k) or (ids.ndim == 1 and ids.size % self.top_k == 0)
        if not fits:
            raise InvalidInputError(f"expert_ids has shape {list(ids.shape)}, but must be [T, {self.top_k}] or flat.")
        ids = ids.reshape(-1, self.top_k)
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_experts):
            row, slot = np.argwhere((ids < 0) | (ids >= self.num_experts))[0]
            raise InvalidInputError(
                f"expert_ids holds {ids[row, slot]} in row {row}, slot {slot}, but experts are numbered 0 to "
                f"{self.num_experts - 1}."
            )
        return ids.astype(np.int32)

    def _weights(self, ids: NDArray[np.int32], probs: Any) -> tuple[Array | None, Array | None]:
        """Weights of the chosen experts, and probabilities of all."""
        if probs is None:
            return None, None
        given = np.asarray(probs, np.float32)
        if given.size == ids.size and given.shape[-1] in (self.top_k, ids.size):
            return given.reshape(ids.shape), None
        if given.shape == (len(ids), self.num_experts):
            return np.take_along_axis(given, ids.astype(np.int64), 1), given
        raise InvalidInputError(
            f"probs has shape {list(given.shape)}, but must be [{len(ids)}, {self.top_k}], the weights of the chosen "
            f"experts, or [{len(ids)}, {self.num_experts}], the probabilities of all."
        )

    def record_trace(self, trace: RoutingTrace) -> None:
        """Records all calls of a trace. Its last calls are the sample, unless calls came before."""
        self._sketch.add(trace)
        self._profile = None
        if self._sample_ids > 0 and not self._sample:
            layer_names = self._model.layer_names
            self._sampled_trace = replace(trace.last_calls(self._sample_ids), layer_names=layer_names)
            self._sample_ids = 0

    def profile(self) -> RoutingProfile:
        """Everything that is known so far, to save, merge, compare and report."""
        if self._profile is None:
            sample = self._sampled_trace
            if self._sample:
                sample = RoutingTrace.of_calls(self._sample, self.num_experts, self.num_layers)
            self._profile = RoutingProfile(self._model, self._sketch.counts(), sample, source="record_routing")
        return self._profile

    @property
    def counts(self) -> RoutingCounts:
        """The counts so far."""
        return self.profile().counts

    @property
    def layer_profiles(self) -> dict[int, LayerRoutingProfile]:
        """The load of each layer that had tokens."""
        profiles = (
            LayerRoutingProfile.of(self.counts, layer, self.hot_threshold, self.cold_threshold)
            for layer in range(self.num_layers)
        )
        return {profile.layer_idx: profile for profile in profiles if profile.total_tokens}

    def get_hot_experts(self, layer: int | None = None) -> list[int]:
        """Hot experts of a layer, or of any (None). Numbers of different layers are unrelated: prefer one layer."""
        return self._union("hot_experts", layer)

    def get_cold_experts(self, layer: int | None = None) -> list[int]:
        """Cold experts of a layer, or of any (None)."""
        return self._union("cold_experts", layer)

    def get_dead_experts(self, layer: int | None = None) -> list[int]:
        """Dead experts of a layer, or those dead in every layer that had tokens (None)."""
        lists = [set(profile.dead_experts) for profile in self._chosen(layer)]
        return sorted(set.intersection(*lists)) if lists else []

    def _union(self, name: str, layer: int | None) -> list[int]:
        return sorted({expert for profile in self._chosen(layer) for expert in getattr(profile, name)})

    def _chosen(self, layer: int | None) -> list[LayerRoutingProfile]:
        profiles = self.layer_profiles
        if layer is None:
            return list(profiles.values())
        if not 0 <= layer < self.num_layers:
            raise InvalidInputError(f"layer is {layer}, but layers are numbered 0 to {self.num_layers - 1}.")
        return [profiles[layer]] if layer in profiles else []

    def get_prefetch_recommendations(self, layer: int, n: int = 4) -> list[int]:
        """The n experts of a layer that were chosen most."""
        loads = self.counts.counts[:, layer].sum(0)
        best = np.argsort(-loads, kind="stable")[:n]
        return [int(expert) for expert in best if loads[expert]]

    @property
    def cooccurrence(self) -> ExpertCooccurrence:
        """Pairs summed over all layers, which says something for one layer only: see `layer_cooccurrence`."""
        return ExpertCooccurrence.of(self.counts, range(self.num_layers))

    def layer_cooccurrence(self, layer: int) -> ExpertCooccurrence:
        """Pairs of a layer, with their lift."""
        return ExpertCooccurrence.of(self.counts, [layer])

    @property
    def predictability(self) -> RoutingPredictability:
        """How layers tell each other's choices."""
        return self.profile().predictability

    def report(self) -> dict[str, Any]:
        """The report: the document of the profile (docs/routing.md)."""
        return self.profile().document()

    def save_report(self, path: str | Path) -> None:
        """Writes the report as JSON; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.report(), indent=1, allow_nan=False), encoding="utf-8")

    def print_summary(self, console: Console | None = None) -> None:
        """Prints a table of the layers."""
        table = Table(title=f"{self.num_experts} experts, top-{self.top_k}, {self.num_layers} layers")
        for heading in ("layer", "tokens", "active", "dead", "CV", "entropy", "Gini", "hot"):
            table.add_column(heading, justify="right")
        for layer, profile in self.layer_profiles.items():
            figures = (f"{value:.3f}" for value in (profile.load_balance_cv_all, profile.entropy, profile.gini))
            sizes = (profile.total_tokens, profile.active_experts, profile.num_dead)
            table.add_row(str(layer), *map(str, sizes), *figures, str(len(profile.hot_experts)))
        (console or Console()).print(table)

    def plot_routing_heatmap(self, path: str | Path) -> None:
        """Draws four panels into a picture: shares, lift of pairs in the least even layer, recall from the layer
        before, evenness by layer. Needs matplotlib.
        """
        from onnx_moe.routing.heatmap import plot

        plot(self.profile(), Path(path))


def simulate_routing_for_model(name: str, num_samples: int = 1000, seed: int = 42) -> MoERoutingProfiler:
    """A profiler that has recorded simulated routing (`simulate_routing`) of a known model: num_samples decoded tokens.

    Raises InvalidInputError ("Unknown model …") for another name.
    """
    from onnx_moe.routing.models import known_model

    model = known_model(name)
    profiler = MoERoutingProfiler(
        model.num_experts, model.num_moe_layers, model.top_k, name=model.name, expert_bytes=model.expert_bytes()
    )
    profiler.record_trace(simulate_routing(model, num_samples, seed=seed))
    return profiler
