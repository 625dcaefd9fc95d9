"""How good predictions were, and what became of the loads that they caused."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

#: Loads that the mean latency is taken over.
_LATENCIES = 100


@dataclass
class PrefetchStats:
    """Counters of one layer.

    A prediction is correct when it names at least one expert that was used: a lenient measure. recall and precision say
    more. Of the loads that a prediction caused: timely ones had ended when the next call used their expert, late ones
    had not, and wasted ones were for experts that it did not use. bytes_wasted: of those of them that had ended.
    """

    layer_idx: int
    predictions_made: int = 0
    predictions_correct: int = 0
    experts_prefetched: int = 0
    experts_hit: int = 0
    experts_used: int = 0
    timely: int = 0
    late: int = 0
    wasted: int = 0
    bytes_loaded: int = 0
    bytes_wasted: int = 0
    _latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES), repr=False)

    def record_prediction(self, predicted: Collection[int], actual: Collection[int]) -> None:
        """A call used the experts `actual`, and these had been predicted."""
        hits = len(set(predicted) & set(actual))
        self.predictions_made += 1
        self.predictions_correct += hits > 0
        self.experts_prefetched += len(predicted)
        self.experts_hit += hits
        self.experts_used += len(set(actual))

    def record_latency(self, latency_ms: float) -> None:
        """A load took this long."""
        self._latencies_ms.append(latency_ms)

    @property
    def prediction_accuracy(self) -> float:
        """Correct predictions / predictions; 0 without any."""
        return _ratio(self.predictions_correct, self.predictions_made)

    @property
    def expert_hit_rate(self) -> float:
        """Predicted experts that were used / predicted experts: precision. 0 without any."""
        return _ratio(self.experts_hit, self.experts_prefetched)

    @property
    def precision(self) -> float:
        """Another name of `expert_hit_rate`."""
        return self.expert_hit_rate

    @property
    def recall(self) -> float:
        """Used experts that were predicted / used experts, of calls that had a prediction; 0 without any."""
        return _ratio(self.experts_hit, self.experts_used)

    @property
    def prefetch_latency_ms(self) -> float:
        """Mean of the last 100 loads; 0 without any."""
        return sum(self._latencies_ms) / len(self._latencies_ms) if self._latencies_ms else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counters as numbers, shares and times as text."""
        return {
            "layer_idx": self.layer_idx,
            "predictions_made": self.predictions_made,
            "prediction_accuracy": f"{self.prediction_accuracy:.2%}",
            "expert_hit_rate": f"{self.expert_hit_rate:.2%}",
            "recall": f"{self.recall:.2%}",
            "precision": f"{self.precision:.2%}",
            "avg_latency_ms": f"{self.prefetch_latency_ms:.2f}",
            **{name: getattr(self, name) for name in ("timely", "late", "wasted", "bytes_loaded", "bytes_wasted")},
        }


def summary(layers: Collection[PrefetchStats]) -> dict[str, Any]:
    """The layers together; shares are "N/A" before the first prediction, the latency before the first load."""
    total = {
        name: sum(getattr(layer, name) for layer in layers)
        for name in (
            "predictions_made",
            "predictions_correct",
            "experts_prefetched",
            "experts_hit",
            "experts_used",
            "timely",
            "late",
            "wasted",
            "bytes_loaded",
            "bytes_wasted",
        )
    }
    latencies = [latency for layer in layers for latency in layer._latencies_ms]
    return {
        "total_predictions": total["predictions_made"],
        "prediction_accuracy": _percent(total["predictions_correct"], total["predictions_made"]),
        "expert_hit_rate": _percent(total["experts_hit"], total["experts_prefetched"]),
        "recall": _percent(total["experts_hit"], total["experts_used"]),
        "precision": _percent(total["experts_hit"], total["experts_prefetched"]),
        "avg_latency_ms": f"{sum(latencies) / len(latencies):.2f}" if latencies else "N/A",
        **{name: total[name] for name in ("timely", "late", "wasted", "bytes_loaded", "bytes_wasted")},
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "N/A"
