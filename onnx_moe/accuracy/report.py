"""What was measured, as plain data."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_moe.errors import OnnxMoeError


def layer_number(layer: str) -> str:
    """The number of a layer in its path, or the path if it has none: what tells layers apart where space is short."""
    return next((part for part in layer.split(".") if part.isdigit()), layer)


def _finite(value: Any) -> Any:
    """`value` with None for every number that is not finite."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class LayerAccuracy:
    """One MoE layer on one workload; y is what its experts, shared ones included, add up to, on all positions.

    relative_error, mse: of y in the exported model's run against the reference's run: FP4 and all that came before.
    hidden_mse: likewise, of the hidden states behind the layer, absolute. stream_mse: the same over their mean square:
    comparable between models.
    fp4_error: relative error of y against the original weights on the same inputs and routing: this layer's FP4 alone.
    arithmetic_error: against a float64 evaluation of the layer's own codes on the same inputs and routing.
    routing_overlap: share of the top-k experts that both runs have in common.
    router_agreement: likewise, between the exported router and the reference's on the same inputs; None where the
    router is ordinary operators. distinct_experts: that the exported model's run reached.
    """

    layer: str
    relative_error: float
    mse: float
    hidden_mse: float
    stream_mse: float
    fp4_error: float
    arithmetic_error: float
    routing_overlap: float
    router_agreement: float | None
    distinct_experts: int


@dataclass(frozen=True)
class Workload:
    """Windows of `tokens` tokens each, and what each layer made of them."""

    name: str
    tokens: int
    windows: int
    layers: tuple[LayerAccuracy, ...]


@dataclass(frozen=True)
class ExpertWeights:
    """Weight error of one projection of one layer: relative RMSE of each expert, and what the format leads one to
    expect of weights of this distribution. outliers: experts further from it than the limit."""

    layer: str
    projection: str
    relative_rmse: tuple[float, ...]
    expected: tuple[float, ...]
    outliers: tuple[int, ...]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval, over windows of text."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Interval:
        """Of the mean of independent values; with fewer than two it has no width to tell: infinite."""
        mean = math.fsum(values) / len(values)
        if len(values) < 2:
            return Interval(mean, -math.inf, math.inf)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        half = 1.96 * math.sqrt(variance / len(values))
        return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class TextAccuracy:
    """Predictions on held-out text. increase: of perplexity, as a factor, from the paired difference of each window."""

    windows: int
    tokens: int
    reference_perplexity: float
    perplexity: float
    increase: Interval
    kl_divergence: Interval
    top1_agreement: float


@dataclass(frozen=True)
class GoldenResult:
    """Golden token ids, predicted one at a time from the golden ones before. wrong_margins: the reference's lead of the
    golden token, in logits, wherever another one is predicted."""

    tokens: int
    agreeing: int
    wrong_margins: tuple[float, ...]


@dataclass(frozen=True)
class AccuracyReport:
    """All that `measure` found. calibrated: whether the experts were quantised for a text, which trades weight error
    for output error."""

    model: str
    reference: str
    format: str
    calibrated: bool
    top_k: int
    workloads: tuple[Workload, ...]
    experts: tuple[ExpertWeights, ...]
    text: TextAccuracy
    golden: GoldenResult

    def to_json(self) -> str:
        """Every field, by name. What is not finite, such as the interval of a single window, is null: JSON has no word
        for it."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False)

    def save(self, path: Path) -> None:
        """Writes to_json(). OnnxMoeError when the file cannot be written."""
        try:
            path.write_text(self.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise OnnxMoeError(f"{path} cannot be written: {error}. Choose another file.") from error

    def workload(self, name: str) -> Workload:
        return next(workload for workload in self.workloads if workload.name == name)
