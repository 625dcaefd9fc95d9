"""What FP4 costs a trained model, by quantiser: perplexity on text that nothing was trained or tuned on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from bench.quantise_peers import Quantiser, installed_peers
from onnx_moe.accuracy.experts import Experts
from onnx_moe.accuracy.measure import spread_windows
from onnx_moe.accuracy.reference import ReferenceModel, activation_of, original_matrices
from onnx_moe.accuracy.report import Interval
from onnx_moe.export import with_fp4_weights
from onnx_moe.export.experts import decoded_values, routed_and_shared
from onnx_moe.export.patching import replace_data

WINDOW = 512
#: What the other ways are compared with: the rule of the OCP MX specification, and what is usual for nvfp4.
RULE = {"mxfp4": "floor", "nvfp4": "even"}
_RESAMPLES = 10_000
_WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class Cost:
    """What one way to quantise costs the model. losses: nats a token of each window, with it and originally;
    baseline: with round to nearest in the same format."""

    name: str
    losses: NDArray[np.float64]
    baseline: NDArray[np.float64]
    original: NDArray[np.float64]
    output_error: float

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.losses.mean()))

    @property
    def original_perplexity(self) -> float:
        return float(np.exp(self.original.mean()))

    @property
    def increase(self) -> Interval:
        """Of perplexity, in %."""
        nats = Interval.of(list(self.losses - self.original))
        return Interval(*(100 * float(np.expm1(value)) for value in (nats.mean, nats.low, nats.high)))

    @property
    def removed(self) -> Interval:
        """Share, in %, of the baseline's loss that this way does not have: a bootstrap over windows."""
        saved, cost = self.baseline - self.losses, self.baseline - self.original
        drawn = np.random.default_rng(0).integers(len(cost), size=(_RESAMPLES, len(cost)))
        low, high = np.percentile(saved[drawn].sum(axis=1) / cost[drawn].sum(axis=1), (2.5, 97.5))
        return Interval(100 * float(saved.sum() / cost.sum()), 100 * float(low), 100 * float(high))


class Bench:
    """The trained model and the windows that it predicts."""

    def __init__(self, folder: Path, text: str) -> None:
        self.reference = ReferenceModel(folder, fold_shared_experts=True)
        tokens = np.array(self.reference.tokenizer(text)["input_ids"], np.int64)
        self.windows = spread_windows(tokens, WINDOW, len(tokens) // WINDOW)
        _, self._runs = self.reference.run(self.windows[:: max(1, len(self.windows) // 4)])

    def losses(self) -> NDArray[np.float64]:
        """Mean negative log likelihood of each window, with the weights as they are now."""
        losses: list[float] = []
        with torch.inference_mode():
            for some in torch.from_numpy(self.windows).split(_WINDOWS_AT_ONCE):
                logits = self.reference.module(input_ids=some, use_cache=False).logits
                for scores, row in zip(logits, some, strict=True):
                    losses.append(float(torch.nn.functional.cross_entropy(scores[:-1].double(), row[1:])))
        return np.array(losses)

    def output_error(self) -> float:
        """Relative error of all layers' outputs together, on the inputs and the routing of the original model."""
        squares = np.zeros(2)
        for layer, run in zip(self.reference.layers, self._runs, strict=True):
            experts = Experts(*original_matrices(layer), activation_of(layer))
            ids = np.concatenate([run.ids, np.full((len(run.ids), 1), layer.experts.num_experts)], axis=1)
            weights = np.concatenate([run.weights, np.ones((len(run.ids), 1), np.float32)], axis=1)
            y = experts.evaluate(replace(run, ids=ids, weights=weights))
            squares += np.square(y - run.y).sum(), np.square(run.y.astype(np.float64)).sum()
        return float(np.sqrt(squares[0] / squares[1]))

    def with_peer(self, quantiser: Quantiser) -> AbstractContextManager[None]:
        """The model with every expert as `quantiser` leaves it."""
        values: dict[torch.Tensor, torch.Tensor] = {}
        for layer in self.reference.layers:
            decoded = [
                [np.stack([quantiser.run(matrix.float()).numpy() for matrix in part]) for part in parts]
                for parts in routed_and_shared(layer)
            ]
            values.update(decoded_values(layer, decoded))
        return replace_data(values)


#: Makes a context in which the model has the weights that one way to quantise leaves.
Way = Callable[[], AbstractContextManager[Any]]


def _ways(bench: Bench, format: str, calibration: Path, console: Console) -> dict[str, Way]:
    """Everything that is compared, the baseline first."""
    quantise = partial(with_fp4_weights, bench.reference.module, None, format=format)
    ways: dict[str, Way] = {
        f"round to nearest, {RULE[format]}": partial(quantise, scale=RULE[format]),
        "onnx-moe": quantise,
        "onnx-moe, calibrated": partial(quantise, calibrate=calibration),
    }
    peers = (peer for peer in installed_peers(console) if peer.format == format)
    return ways | {peer.name: partial(bench.with_peer, peer) for peer in peers}


def measure_costs(folder: Path, format: str, text: Path, calibration: Path, console: Console) -> list[Cost]:
    """Every way to quantise the experts of the model in `folder` to `format`, on the predictions of `text`."""
    bench = Bench(folder, text.read_text(encoding="utf-8"))
    original = bench.losses()
    console.print(f"original: perplexity {np.exp(original.mean()):.4f} on {bench.windows.size} tokens", highlight=False)
    costs: list[Cost] = []
    for name, way in _ways(bench, format, calibration, console).items():
        with way():
            losses, error = bench.losses(), bench.output_error()
        costs.append(Cost(name, losses, costs[0].losses if costs else losses, original, error))
        console.print(f"[dim]{name}: {costs[-1].perplexity:.4f}, {costs[-1].removed.mean:.0f} %[/]", highlight=False)
    return costs
