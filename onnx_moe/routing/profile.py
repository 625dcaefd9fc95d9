"""The profile of a model's routing: counts of a run, a stretch of its calls, and what follows from them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.counts import SHAPES, RoutingCounts
from onnx_moe.routing.experts import LayerRoutingProfile, RoutingPredictability
from onnx_moe.routing.hit_rates import HitRateCurves, hit_rate_curves
from onnx_moe.routing.scoreboard import Score, default_predictors, scoreboard, scored_part
from onnx_moe.routing.sketch import RoutingSketch
from onnx_moe.routing.trace import RoutingTrace

#: Expert ids of the stretch of calls that is kept, on which caches are simulated.
SAMPLE_IDS = 300_000

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ProfiledModel:
    """What a profile is of. expert_bytes: of one expert, all projections packed; None where that is not known."""

    name: str
    layer_names: tuple[str, ...]
    num_experts: int
    top_k: int
    expert_bytes: int | None = None

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return len(self.layer_names)


@dataclass(frozen=True)
class RoutingProfile:
    """A run's routing. sample: calls that followed each other, in full; None where only counts are known.

    dropped_calls: calls that the counts lack because a recording was bounded.
    """

    model: ProfiledModel
    counts: RoutingCounts
    sample: RoutingTrace | None = None
    source: str = ""
    dropped_calls: int = 0
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @cached_property
    def layers(self) -> tuple[LayerRoutingProfile, ...]:
        """The load of each layer."""
        return tuple(LayerRoutingProfile.of(self.counts, layer) for layer in range(self.model.num_layers))

    @cached_property
    def hit_rates(self) -> HitRateCurves | None:
        """Hit rates by size of cache on the sample; None without one."""
        return None if self.sample is None else hit_rate_curves(self.sample)

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """Predictors on the sample's last tokens; none without a sample."""
        if self.sample is None:
            return ()
        budgets = (self.model.top_k, 2 * self.model.top_k)
        return tuple(scoreboard(scored_part(self.sample), default_predictors(self.model.num_experts), budgets))

    @cached_property
    def predictability(self) -> RoutingPredictability:
        """How layers tell each other's choices."""
        table = next((s for s in self.scores if s.predictor == "cross-layer" and s.budget == self.model.top_k), None)
        if table is None:
            return RoutingPredictability.of(self.counts)
        recall = table.per_layer_recall.copy()
        recall[0] = np.nan  # popularity, not a layer before
        return RoutingPredictability.of(self.counts, recall)

    def document(self) -> dict[str, Any]:
        """The profile as JSON values: docs/routing.md describes it."""
        from onnx_moe.routing.document import document

        return document(self)

    def save_json(self, path: str | Path) -> None:
        """Writes the document; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.document(), separators=(",", ":"), allow_nan=False), encoding="utf-8")

    def merge(self, later: RoutingProfile) -> RoutingProfile:
        """The profile of both runs. Raises InvalidInputError for profiles of models of different shape.

        The sample is the later one's, where it has one: pieces of two runs are not a run.
        """
        if self.model.layer_names != later.model.layer_names:
            raise InvalidInputError(
                f"the profiles have the layers {list(self.model.layer_names)} and {list(later.model.layer_names)}: "
                "merge runs of one model."
            )
        return replace(
            self,
            counts=self.counts.merge(later.counts),
            sample=later.sample if later.sample is not None else self.sample,
            source="; ".join(name for name in (self.source, later.source) if name),
            dropped_calls=self.dropped_calls + later.dropped_calls,
            created=max(self.created, later.created),
        )

    def save(self, path: str | Path) -> None:
        """Writes counts and sample (a compressed .npz), to be merged and compared with others later."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "version": 1,
            "name": self.model.name,
            "layer_names": self.model.layer_names,
            "num_experts": self.model.num_experts,
            "top_k": self.model.top_k,
            "expert_bytes": self.model.expert_bytes,
            "source": self.source,
            "dropped_calls": self.dropped_calls,
            "created": self.created,
        }
        arrays = dict(self.counts.columns)
        if self.sample is not None:
            arrays |= {f"sample_{name}": column for name, column in _columns(self.sample).items()}
        with path.open("wb") as file:
            np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]

    @staticmethod
    def is_profile(path: str | Path) -> bool:
        """Whether a file is one that `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return "facts" in file.files
        except (OSError, ValueError, zipfile.BadZipFile):
            return False

    @classmethod
    def load(cls, path: str | Path) -> RoutingProfile:
        """Reads what `save` wrote. Raises InvalidInputError for another file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
            columns = {name: arrays[name] for name in SHAPES}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InvalidInputError(
                f"{path} is not a profile ({error}): give a file that RoutingProfile.save wrote."
            ) from error
        model = ProfiledModel(
            facts["name"], tuple(facts["layer_names"]), facts["num_experts"], facts["top_k"], facts["expert_bytes"]
        )
        counts = RoutingCounts(model.num_layers, model.num_experts, model.top_k, columns)
        return cls(model, counts, _sample(model, arrays), facts["source"], facts["dropped_calls"], facts["created"])


def profile_trace(
    trace: RoutingTrace,
    *,
    name: str = "",
    expert_bytes: int | None = None,
    source: str = "",
    dropped_calls: int = 0,
    progress: Progress | None = None,
) -> RoutingProfile:
    """The profile of a trace. progress: called with a stage and the share of it that is done."""
    sketch = RoutingSketch(trace.num_experts, trace.num_layers, trace.top_k)
    sketch.add(trace, progress=None if progress is None else lambda share: progress("counting", share))
    model = ProfiledModel(name, trace.layer_names, trace.num_experts, trace.top_k, expert_bytes)
    sample = trace.last_calls(SAMPLE_IDS) if trace.num_calls else None
    return RoutingProfile(model, sketch.counts(), sample, source, dropped_calls)


def _columns(trace: RoutingTrace) -> dict[str, Any]:
    columns = {name: getattr(trace, name) for name in ("layers", "phases", "requests", "offsets", "experts", "weights")}
    return {name: column for name, column in columns.items() if column is not None}


def _sample(model: ProfiledModel, arrays: dict[str, Any]) -> RoutingTrace | None:
    if "sample_layers" not in arrays:
        return None
    columns = {name.removeprefix("sample_"): array for name, array in arrays.items() if name.startswith("sample_")}
    return RoutingTrace(model.num_experts, model.top_k, model.layer_names, **columns)
