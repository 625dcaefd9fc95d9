"""Budgets × policies × prefetch signals."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.residency_bench.bound import belady_hit_rate, with_shared_experts
from onnx_moe.residency_bench.measure import Measurement, Run, Setting, measure, record_routing
from onnx_moe.residency_bench.model import TextModel


@dataclass(frozen=True)
class Sweep:
    """What is measured: each combination `rounds` times, in turn, so that a slow moment of the machine hits all."""

    budgets: tuple[str, ...] = ("10%", "25%", "50%", "75%", "100%")
    policies: tuple[str, ...] = ("lru", "decayed-lfu")
    prefetch: tuple[str, ...] = ("off", "cross-layer", "next-gate")
    rounds: int = 3

    def settings(self) -> list[Setting]:
        """Everything mapped, and the combinations."""
        return [Setting(), *itertools.starmap(Setting, itertools.product(self.budgets, self.policies, self.prefetch))]


@dataclass(frozen=True)
class Report:
    """Medians over the rounds. belady: by capacity, the hit rate that no policy can beat on this routing."""

    model: str
    text: str
    repeated_share: float  # of the text's runs of 8 tokens: those that it had before
    run: Run
    sweep: Sweep
    mapped: Measurement
    pooled: tuple[Measurement, ...]
    belady: dict[int, float]

    @property
    def page_cache(self) -> str:
        """What of the file was in the page cache when sessions began, and whether they read past it."""
        cached = max(measurement.cached_before for measurement in (self.mapped, *self.pooled))
        direct = {measurement.direct_io for measurement in self.pooled if not measurement.refused}
        reads = {
            frozenset(): "every budget was refused",
            frozenset([True]): "reads past it (O_DIRECT)",
            frozenset([False]): "reads through it, which may hit it",
        }.get(frozenset(direct), "some sessions read past it, some through it")
        return f"dropped before each session (posix_fadvise), at most {100 * cached:.0f} % of the file left; {reads}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "text": self.text,
            "repeated_share": self.repeated_share,
            "page_cache": self.page_cache,
            "run": dataclasses.asdict(self.run),
            "sweep": dataclasses.asdict(self.sweep),
            "mapped": _as_dict(self.mapped),
            "pooled": [
                {**_as_dict(measurement), "belady_hit_rate": self.belady.get(measurement.capacity)}
                for measurement in self.pooled
            ],
        }


def _as_dict(measurement: Measurement) -> dict[str, Any]:
    fields = dataclasses.asdict(measurement)
    del fields["written"]
    return {**fields.pop("setting"), "hit_rate": measurement.hit_rate, **fields}


def run_sweep(model: TextModel, sweep: Sweep, run: Run, progress: Callable[[str, int, int], None]) -> Report:
    """Measures every setting; progress(line, done, of) is called before each session.

    Raises InvalidInputError for numbers out of range, OnnxMoeError when two settings write different text.
    """
    for name, value in (
        ("tokens", run.tokens),
        ("warm-up tokens", run.warm_up),
        ("threads", run.threads),
        ("rounds", sweep.rounds),
    ):
        if value < 1:
            raise InvalidInputError(f"the number of {name} is {value}, but must be at least 1.")
    settings = sweep.settings()
    results: dict[Setting, list[Measurement]] = {setting: [] for setting in settings}
    total = sweep.rounds * len(settings)
    for number, (_, setting) in enumerate(itertools.product(range(sweep.rounds), settings)):
        progress(str(setting), number, total)
        results[setting].append(measure(model, setting, run))
    mapped, *pooled = (_median(measurements) for measurements in results.values())
    _check_text(mapped, pooled)
    trace = with_shared_experts(record_routing(model, run), model.num_experts)
    per_token = {measurement.lookups // run.tokens for measurement in pooled if not measurement.refused}
    # Projections in nodes of their own are layers of their own to the cache: it looks each up, and no bound is known.
    comparable = per_token == {trace.top_k * trace.num_layers}
    capacities = {measurement.capacity for measurement in pooled if not measurement.refused}
    return Report(
        model.name,
        model.decode(list(mapped.written)),
        repeated_share(mapped.written),
        run,
        sweep,
        mapped,
        tuple(pooled),
        {capacity: belady_hit_rate(trace, capacity, run.tokens) for capacity in capacities} if comparable else {},
    )


def repeated_share(tokens: Sequence[int], length: int = 8) -> float:
    """Of all runs of `length` tokens, those that the text had before: 1 for the same token for ever, 0 for new text."""
    runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _median(measurements: list[Measurement]) -> Measurement:
    """Times are medians; counts are the first round's, which the others repeat."""
    return dataclasses.replace(
        measurements[0],
        **{
            name: statistics.median(getattr(measurement, name) for measurement in measurements)
            for name in ("tokens_per_second", "bytes_per_token", "stall_ms_per_token", "cached_before")
        },
    )


def _check_text(mapped: Measurement, pooled: list[Measurement]) -> None:
    for measurement in pooled:
        if not measurement.refused and measurement.written != mapped.written:
            raise OnnxMoeError(f"{measurement.setting} writes another text than the mapped model: please report this.")
