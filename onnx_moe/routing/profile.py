"""The profile of a model's routing: counts of a run, a stretch of its calls, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.counts import SHAPES, RoutingCounts
from onnx_moe.routing.experts import LayerRoutingProfile, LoadThresholds, RoutingPredictability
from onnx_moe.routing.hit_rates import HitRateCurves, hit_rate_curves
from onnx_moe.routing.prompt_classes import PromptClasses
from onnx_moe.routing.sampling import sample_notes, sample_of
from onnx_moe.routing.scoreboard import Score, default_predictors, scoreboard, scored_part
from onnx_moe.routing.sketch import RoutingSketch
from onnx_moe.routing.trace import DAMAGED, RoutingTrace

#: Expert ids of the stretch of calls that is kept, on which caches are simulated.
SAMPLE_IDS = 300_000

#: Of the file that `RoutingProfile.save` writes.
FILE_VERSION = 2

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

    def merge(self, other: ProfiledModel) -> ProfiledModel:
        """What both know. Raises InvalidInputError where they contradict each other."""
        known = {
            "name": (self.name or other.name, other.name or self.name),
            "expert_bytes": (self.expert_bytes or other.expert_bytes, other.expert_bytes or self.expert_bytes),
            "layer_names": (self.layer_names, other.layer_names),
        }
        for what, (mine, theirs) in known.items():
            if mine != theirs:
                raise InvalidInputError(
                    f"the profiles have {what} {mine!r} and {theirs!r}: merge runs of one model, or make them equal "
                    "(dataclasses.replace) where they are."
                )
        return replace(self, name=known["name"][0], expert_bytes=known["expert_bytes"][0])  # type: ignore[arg-type]


@dataclass(frozen=True)
class RoutingProfile:
    """A run's routing. sample: passes through all layers, in full; None where only counts are known.

    dropped_calls: calls that the counts lack because a recording was bounded. thresholds: from when an expert is hot or
    cold. facts: of the run, by name ("recorder", "format", …). notes: sentences that a reader of the figures must know.
    """

    model: ProfiledModel
    counts: RoutingCounts
    sample: RoutingTrace | None = None
    source: str = ""
    dropped_calls: int = 0
    thresholds: LoadThresholds = field(default_factory=LoadThresholds)
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    classes: PromptClasses | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @cached_property
    def layers(self) -> tuple[LayerRoutingProfile, ...]:
        """The load of each layer."""
        layers = range(self.model.num_layers)
        return tuple(LayerRoutingProfile.of(self.counts, layer, self.thresholds) for layer in layers)

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
        """The profile of both runs. Raises InvalidInputError for profiles of different models or thresholds; what only
        one of them knows (name, bytes of an expert) is taken over.

        The sample is the later one's, where it has one: pieces of two runs are not a run.
        """
        model = self.model.merge(later.model)
        if self.thresholds != later.thresholds:
            raise InvalidInputError(f"the profiles have {self.thresholds} and {later.thresholds}: merge equal ones.")
        return replace(
            self,
            model=model,
            counts=self.counts.merge(later.counts),
            sample=later.sample if later.sample is not None else self.sample,
            source="; ".join(name for name in (self.source, later.source) if name),
            dropped_calls=self.dropped_calls + later.dropped_calls,
            facts={name: value for name, value in self.facts.items() if later.facts.get(name) == value},
            notes=tuple(dict.fromkeys((*self.notes, *later.notes))),
            classes=self.classes.merge(later.classes) if self.classes and later.classes else None,
            created=max(self.created, later.created),
        )

    def save(self, path: str | Path) -> None:
        """Writes counts and sample (a compressed .npz), to be merged and compared with others later."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "version": FILE_VERSION,
            "name": self.model.name,
            "layer_names": self.model.layer_names,
            "num_experts": self.model.num_experts,
            "top_k": self.model.top_k,
            "expert_bytes": self.model.expert_bytes,
            "source": self.source,
            "dropped_calls": self.dropped_calls,
            "created": self.created,
            "hot_threshold": self.thresholds.hot,
            "cold_threshold": self.thresholds.cold,
            "facts": dict(self.facts),
            "notes": self.notes,
            "classes": self.classes.names if self.classes else (),
        }
        arrays = dict(self.counts.columns)
        if self.classes is not None:
            arrays |= {"class_tokens": self.classes.tokens, "class_counts": self.classes.counts}
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
        except DAMAGED:
            return False

    @classmethod
    def load(cls, path: str | Path) -> RoutingProfile:
        """Reads what `save` wrote. Raises InvalidInputError for another file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
            if facts["version"] != FILE_VERSION:
                raise InvalidInputError(
                    f"{path} has version {facts['version']}, but this release reads {FILE_VERSION}: profile again."
                )
            columns = {name: arrays[name] for name in SHAPES}
            return cls._of_file(facts, columns, arrays)
        except InvalidInputError:
            raise
        except (*DAMAGED, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{path} is not a profile ({error or 'it is empty'}): give a file that RoutingProfile.save wrote."
            ) from error

    @classmethod
    def _of_file(cls, facts: dict[str, Any], columns: dict[str, Any], arrays: dict[str, Any]) -> RoutingProfile:
        model = ProfiledModel(
            facts["name"], tuple(facts["layer_names"]), facts["num_experts"], facts["top_k"], facts["expert_bytes"]
        )
        return cls(
            model,
            RoutingCounts(model.num_layers, model.num_experts, model.top_k, columns),
            _sample(model, arrays),
            source=facts["source"],
            dropped_calls=facts["dropped_calls"],
            thresholds=LoadThresholds(facts["hot_threshold"], facts["cold_threshold"]),
            facts=facts["facts"],
            notes=tuple(facts["notes"]),
            classes=PromptClasses(tuple(facts["classes"]), arrays["class_tokens"], arrays["class_counts"])
            if facts["classes"]
            else None,
            created=facts["created"],
        )


def profile_trace(
    trace: RoutingTrace,
    *,
    name: str = "",
    expert_bytes: int | None = None,
    source: str = "",
    dropped_calls: int = 0,
    thresholds: LoadThresholds | None = None,
    facts: Mapping[str, str] | None = None,
    class_of_request: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> RoutingProfile:
    """The profile of a trace.

    facts: of the run, such as its model's format. class_of_request: names of classes to keep apart. progress: called
    with a stage and the share of it that is done. Raises InvalidInputError for a trace without tokens.
    """
    if len(trace.experts) == 0:
        raise InvalidInputError("the trace holds no token: record some first.")
    sketch = RoutingSketch(trace.num_experts, trace.num_layers, trace.top_k)
    sketch.add(trace, progress=None if progress is None else lambda share: progress("counting", share))
    model = ProfiledModel(name, trace.layer_names, trace.num_experts, trace.top_k, expert_bytes)
    sample = sample_of(trace, SAMPLE_IDS)
    return RoutingProfile(
        model,
        sketch.counts(),
        sample,
        source,
        dropped_calls,
        thresholds or LoadThresholds(),
        facts or {},
        sample_notes(trace, sample),
        PromptClasses.of(trace, class_of_request or {}),
    )


def _columns(trace: RoutingTrace) -> dict[str, Any]:
    columns = {name: getattr(trace, name) for name in ("layers", "phases", "requests", "offsets", "experts", "weights")}
    return {name: column for name, column in columns.items() if column is not None}


def _sample(model: ProfiledModel, arrays: dict[str, Any]) -> RoutingTrace | None:
    if "sample_layers" not in arrays:
        return None
    columns = {name.removeprefix("sample_"): array for name, array in arrays.items() if name.startswith("sample_")}
    return RoutingTrace(model.num_experts, model.top_k, model.layer_names, **columns)
