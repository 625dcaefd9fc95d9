"""Time and memory of profiling a long trace, stage by stage: python -m bench.profiling."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from onnx_moe.routing import RoutingProfile, RoutingSimulator, RoutingTrace, profile_trace
from onnx_moe.routing.trace import DECODE

#: Tokens that are drawn; the trace repeats them, so that making it does not take longer than profiling it.
DRAWN = 5000


def main(
    layers: Annotated[int, typer.Option(help="MoE layers.")] = 48,
    experts: Annotated[int, typer.Option(help="Experts of a layer.")] = 128,
    top_k: Annotated[int, typer.Option(help="Experts of a token.")] = 8,
    tokens: Annotated[int, typer.Option(help="Decoded tokens of the trace.")] = 100_000,
) -> None:
    """Profiles a simulated trace and makes its document and its report. Bars: 20 s, 1 GB, a report below 5 MB."""
    from onnx_moe.routing.report import render_page

    trace = _trace(layers, experts, top_k, tokens)
    before = _peak_megabytes()
    stages: list[tuple[str, float]] = []

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        stages.append((name, time.perf_counter() - start))
        return result

    profile: RoutingProfile = timed("counting", lambda: profile_trace(trace, name="bench", expert_bytes=2_500_000))
    timed("cache simulation", lambda: profile.hit_rates)
    timed("predictors", lambda: profile.scores)
    document = timed("the rest of the document", profile.document)
    page = timed("report", partial(render_page, document))
    table = Table(title=f"{layers} layers × {experts} experts, top-{top_k}, {tokens} tokens: seconds")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, seconds in [*stages, ("in all", sum(seconds for _, seconds in stages))]:
        table.add_row(name, f"{seconds:.2f}")
    console = Console()
    console.print(table)
    document_megabytes, page_megabytes = (len(text.encode()) / 1e6 for text in (json.dumps(document), page))
    console.print(
        f"Most memory: {_peak_megabytes():.0f} MB, of which {before:.0f} MB before profiling (the trace itself is "
        f"{_bytes(trace) / 1e6:.0f} MB). Document {document_megabytes:.2f} MB, report {page_megabytes:.2f} MB.",
        highlight=False,
    )


def _trace(layers: int, experts: int, top_k: int, tokens: int) -> RoutingTrace:
    simulator = RoutingSimulator(layers, experts, top_k)
    calls = tokens * layers
    chosen = np.empty((tokens, layers, top_k), np.int32)
    weights = np.empty((tokens, layers, top_k), np.float32)
    for token in range(min(tokens, DRAWN)):
        if token % 500 == 0:
            simulator.begin_request()
        chosen[token], weights[token] = simulator.token()
    for first in range(DRAWN, tokens, DRAWN):
        part = min(DRAWN, tokens - first)
        chosen[first : first + part], weights[first : first + part] = chosen[:part], weights[:part]
    return RoutingTrace(
        experts,
        top_k,
        tuple(map(str, range(layers))),
        np.tile(np.arange(layers, dtype=np.int32), tokens),
        np.full(calls, DECODE, np.uint8),
        np.repeat(np.arange(tokens, dtype=np.int32) // 500, layers),
        np.arange(calls + 1, dtype=np.int64) * top_k,
        chosen.reshape(-1),
        weights.reshape(-1),
    )


def _bytes(trace: RoutingTrace) -> int:
    columns = (trace.layers, trace.phases, trace.requests, trace.offsets, trace.experts, trace.weights)
    return sum(column.nbytes for column in columns if column is not None)


def _peak_megabytes() -> float:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    typer.run(main)
