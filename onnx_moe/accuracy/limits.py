"""What a report must keep to: the limits of the suite that this project set out from, and tighter ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx_moe.accuracy.report import AccuracyReport, LayerAccuracy, Workload, layer_number

#: An expert's relative RMSE may be this far from the expectation, in parts of one: half a point.
WEIGHT_TOLERANCE = 0.005
#: Calibration moves weights away from the nearest codes on purpose: up to this many times the expectation.
CALIBRATED_FACTOR = 2.0

#: Of the suite that this project set out from, for any model.
SEED_MSE = 0.01
SEED_PERPLEXITY_INCREASE = 0.05
SEED_DIVERSITY = 0.8

#: Windows of at least so many tokens are running text; routing on as many is compared with that on REPEATED.
RUNNING_TOKENS = 128
REPEATED = f"one word {RUNNING_TOKENS} times"


@dataclass(frozen=True)
class Limits:
    """Upper limits, and lower ones where a name says so.

    The defaults hold for the trained model that ships, in mxfp4 and nvfp4; a larger model is usually less sensitive.
    """

    relative_error: float = 0.25
    stream_mse: float = 0.035
    fp4_error: float = 0.17
    arithmetic_error: float = 1e-5
    least_router_agreement: float = 0.999
    least_routing_overlap: float = 0.90
    least_diversity: float = 2.0
    perplexity_increase: float = 0.045
    kl_divergence: float = 0.08
    least_top1_agreement: float = 0.85
    golden_margin: float = 2.0


@dataclass(frozen=True)
class Finding:
    """One check: what was measured and what it must keep to."""

    name: str
    value: float
    limit: float
    good: bool
    where: str

    def __str__(self) -> str:
        verdict = "keeps to" if self.good else "breaks"
        return f"{self.name}: {self.value:.4g} {verdict} its limit of {self.limit:.4g} ({self.where})"


def outlying(errors: list[float], expected: list[float], calibrated: bool) -> tuple[int, ...]:
    """Experts whose weight error is not what the format leads one to expect."""
    if calibrated:
        return tuple(
            expert
            for expert, (error, ideal) in enumerate(zip(errors, expected, strict=True))
            if not ideal - WEIGHT_TOLERANCE <= error <= CALIBRATED_FACTOR * ideal
        )
    return tuple(
        expert
        for expert, (error, ideal) in enumerate(zip(errors, expected, strict=True))
        if not abs(error - ideal) <= WEIGHT_TOLERANCE
    )


def check(report: AccuracyReport, limits: Limits | None = None) -> list[Finding]:
    """Every check, each at the place where it is worst. A NaN breaks any limit."""
    limits = limits or Limits()
    return [*_layer_checks(report, limits), *_weight_checks(report), *_text_checks(report, limits)]


def _layer_checks(report: AccuracyReport, limits: Limits) -> Iterator[Finding]:
    everywhere = [(workload.name, layer) for workload in report.workloads for layer in workload.layers]
    text = [(workload.name, layer) for workload in _texts(report) for layer in workload.layers]

    def worst(cells: list[tuple[str, LayerAccuracy]], field: str, sign: int) -> tuple[float, str]:
        values = [(sign * getattr(layer, field), f"layer {layer_number(layer.layer)}, {name}") for name, layer in cells]
        value, where = max(values, key=lambda item: (item[0] != item[0], item[0]))
        return sign * value, where

    def at_most(name: str, cells: list[tuple[str, LayerAccuracy]], field: str, limit: float) -> Finding:
        value, where = worst(cells, field, 1)
        return Finding(name, value, limit, value <= limit, where)

    def at_least(name: str, cells: list[tuple[str, LayerAccuracy]], field: str, limit: float) -> Finding:
        value, where = worst(cells, field, -1)
        return Finding(name, value, limit, value >= limit, where)

    yield _mean_mse(report)
    yield at_most("layer error", everywhere, "relative_error", limits.relative_error)
    yield at_most("hidden states", text, "stream_mse", limits.stream_mse)
    yield at_most("layer FP4 error", everywhere, "fp4_error", limits.fp4_error)
    yield at_most("layer arithmetic", everywhere, "arithmetic_error", limits.arithmetic_error)
    if all(layer.router_agreement is not None for _, layer in everywhere):
        yield at_least("router agreement", everywhere, "router_agreement", limits.least_router_agreement)
    yield at_least("routing overlap", text, "routing_overlap", limits.least_routing_overlap)
    yield from _diversity(report, limits)


def _texts(report: AccuracyReport) -> list[Workload]:
    """Windows of running text: a single token, or one word over and over, makes too few decisions to compare."""
    return [
        workload for workload in report.workloads if workload.tokens >= RUNNING_TOKENS and workload.name != REPEATED
    ]


def _mean_mse(report: AccuracyReport) -> Finding:
    """The largest over windows of running text of the mean over layers: an absolute error, which grows with the
    hidden states of a model from layer to layer."""
    means = [
        (sum(layer.mse for layer in workload.layers) / len(workload.layers), f"mean over layers, {workload.name}")
        for workload in _texts(report)
    ]
    value, where = max(means, key=lambda item: (item[0] != item[0], item[0]))
    return Finding("layer MSE (seed)", value, SEED_MSE, value <= SEED_MSE, where)


def _diversity(report: AccuracyReport, limits: Limits) -> Iterator[Finding]:
    diverse, concentrated = report.workload(f"{RUNNING_TOKENS} tokens").layers, report.workload(REPEATED).layers

    def experts(layers: tuple[LayerAccuracy, ...]) -> float:
        return sum(layer.distinct_experts for layer in layers) / len(layers)

    ratio = experts(diverse) / experts(concentrated)
    where = f"experts of {RUNNING_TOKENS} tokens of text over those of {REPEATED}"
    yield Finding("routing diversity (seed)", ratio, SEED_DIVERSITY, ratio >= SEED_DIVERSITY, where)
    yield Finding("routing diversity", ratio, limits.least_diversity, ratio >= limits.least_diversity, where)


def _weight_checks(report: AccuracyReport) -> Iterator[Finding]:
    outliers = [
        (
            abs(part.relative_rmse[expert] - part.expected[expert]),
            f"layer {layer_number(part.layer)}, {part.projection} of expert {expert}",
        )
        for part in report.experts
        for expert in part.outliers
    ]
    where = "; ".join(name for _, name in sorted(outliers, reverse=True)[:4]) or "no expert is further off"
    yield Finding("expert weights", len(outliers), 0, not outliers, where)


def _text_checks(report: AccuracyReport, limits: Limits) -> Iterator[Finding]:
    text, golden = report.text, report.golden
    where = f"{text.tokens} tokens of text"
    high = text.increase.high
    yield Finding("perplexity (seed)", high, SEED_PERPLEXITY_INCREASE, high <= SEED_PERPLEXITY_INCREASE, where)
    yield Finding("perplexity", high, limits.perplexity_increase, high <= limits.perplexity_increase, where)
    divergence = text.kl_divergence.high
    yield Finding("KL divergence", divergence, limits.kl_divergence, divergence <= limits.kl_divergence, where)
    agreement = text.top1_agreement
    yield Finding(
        "top-1 agreement", agreement, limits.least_top1_agreement, agreement >= limits.least_top1_agreement, where
    )
    margin = max(golden.wrong_margins, default=0.0)
    where = f"the reference's lead where another token is predicted, {golden.agreeing} of {golden.tokens} agree"
    yield Finding("golden tokens", margin, limits.golden_margin, margin <= limits.golden_margin, where)
