"""Router, expert projection and whole block, in every regime, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metal.simulator import operators
from metal.simulator.operators import REGIMES, Device, ProjectionInputs

from .device import KeepingDevice
from .models import Array, Block, Model, draw_activations, draw_block
from .reference import Routing, project, route, run_block

#: Of float16 outputs: rounding once gives 2e-4 to 3e-4, twice (a block's intermediate too) hardly more.
BOUND = 1e-3
#: A float32 score is right to some 1e-6: below this distance another choice is no error.
OPEN_MARGIN = 1e-5
SAMPLES = 4


def regimes(tokens: int) -> tuple[str, ...]:
    """All, but for those that would only take long at this size."""
    if tokens == 1:
        return ("decode",)
    return REGIMES if tokens <= 64 else REGIMES[1:]


def relative_error(actual: Array, expected: Array) -> float:
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))


def say_at_once(line: str) -> None:
    print(line, flush=True)


@dataclass
class Report:
    """Says a line for each comparison; `right` while all are within bounds."""

    say: Callable[[str], None] = say_at_once
    right: bool = True

    def line(self, model: Model, tokens: int, what: str, error: float, bound: float = BOUND) -> None:
        self.right &= error <= bound  # False for NaN
        mark = "" if error <= bound else f"  WRONG: at most {bound:.0e}"
        self.say(f"{model.name:14} {tokens:5} tokens  {what:28} {error:.2e}{mark}")


def check(
    device: KeepingDevice, models: tuple[Model, ...], token_counts: tuple[int, ...], report: Report | None = None
) -> bool:
    """Everything for each model and number of tokens; whether all of it is right."""
    report = report or Report()
    for model in models:
        rng = np.random.default_rng(len(model.name))
        block = draw_block(rng, model)
        with device.keeping(block.arrays()):
            for tokens in token_counts:
                x = draw_activations(rng, model, tokens)
                routing = _check_router(device, report, model, block, x)
                _check_projection(device, report, model, block, x, routing, rng)
                _check_block(device, report, model, block, x, routing)
    return report.right


def _check_router(device: Device, report: Report, model: Model, block: Block, x: Array) -> Routing:
    expected = route(model.router, block, x)
    ids, weights, _ = operators.router(device, model.router, block.routing(x))
    clear = expected.margins > OPEN_MARGIN
    report.line(
        model, len(x), "router, experts chosen wrong", float((ids[clear] != expected.expert_ids[clear]).sum()), 0
    )
    error = relative_error(weights[clear], expected.expert_weights[clear]) if clear.any() else 0.0
    report.line(model, len(x), "router, weights", error, 1e-5)
    return expected


def _check_projection(
    device: Device, report: Report, model: Model, block: Block, x: Array, routing: Routing, rng: np.random.Generator
) -> None:
    tensors = block.gate_up
    ids = routing.expert_ids.astype(np.int32)
    inputs = ProjectionInputs(x, ids, tensors.weights, tensors.scales, bias=tensors.bias)
    samples = rng.integers(0, ids.shape, (SAMPLES, 2))
    expected = np.stack([project(model.gate_up, tensors, int(ids[t, slot]), x[t]) for t, slot in samples])
    results = {
        regime: operators.expert_gemm(device, model.gate_up, inputs, regime=regime) for regime in regimes(len(x))
    }
    for regime, y in results.items():
        actual = np.stack([y[t, slot] for t, slot in samples])
        report.line(model, len(x), f"projection, {regime}", relative_error(actual, expected))
    for regime, y in results.items():
        if regime != "grouped" and "grouped" in results:
            difference = relative_error(y, results["grouped"].astype(np.float64))
            report.line(model, len(x), f"projection, {regime} - grouped", difference)


def _check_block(device: Device, report: Report, model: Model, block: Block, x: Array, routing: Routing) -> None:
    clear = np.flatnonzero(routing.margins > OPEN_MARGIN)
    samples = clear[:: max(1, len(clear) // SAMPLES)][:SAMPLES]
    expected = np.stack([run_block(model, block, routing, x, int(token)) for token in samples])
    for regime in regimes(len(x)):
        y = np.zeros((len(x), model.hidden_size), np.float16)
        projections = (block.gate_up, block.down)
        call = operators.block_call((model.router, model.gate_up), block.routing(x), projections, y, regime)
        call.run(device)
        report.line(model, len(x), f"block, {regime}", relative_error(y[samples], expected))
