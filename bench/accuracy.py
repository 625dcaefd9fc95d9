"""What FP4 costs a trained model, by quantiser: perplexity and output error on held-out text: python -m bench.accuracy.

The held-out text of the trained model that ships is split by documents: every other one is for calibration, and what is
measured is measured on the rest.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.quantise_peers import Quantiser, installed_peers
from onnx_moe.accuracy.experts import Experts
from onnx_moe.accuracy.measure import spread_windows
from onnx_moe.accuracy.reference import ReferenceModel, activation_of, original_matrices
from onnx_moe.accuracy.report import Interval
from onnx_moe.export import with_fp4_weights
from onnx_moe.export.experts import decoded_values, routed_and_shared
from onnx_moe.export.patching import replace_data

_FOLDER = Path(__file__).resolve().parents[1] / "onnx_moe" / "data" / "tiny-glm"
_WINDOW = 512
#: What the other ways are compared with: the rule of the OCP MX specification, and what is usual for nvfp4.
_BASELINE = {"mxfp4": "round to nearest, floor", "nvfp4": "round to nearest, even"}


def split_text() -> tuple[str, str]:
    """Held-out text to calibrate on, and to measure on."""
    documents = (_FOLDER / "heldout.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    documents = [document for document in documents if document.strip()]
    return "<|endoftext|>".join(documents[0::2]), "<|endoftext|>".join(documents[1::2])


class Bench:
    """The trained model, the windows that it predicts, and its losses with the original weights."""

    def __init__(self, text: str) -> None:
        self.reference = ReferenceModel(_FOLDER, fold_shared_experts=True)
        tokens = np.array(self.reference.tokenizer(text)["input_ids"], np.int64)
        self.windows = spread_windows(tokens, _WINDOW, len(tokens) // _WINDOW)
        _, self._runs = self.reference.run(self.windows[:: max(1, len(self.windows) // 4)])
        self.original = self.losses()

    def losses(self) -> list[float]:
        """Mean negative log likelihood of each window, with the weights as they are now."""
        losses = []
        with torch.inference_mode():
            for row in torch.from_numpy(self.windows):
                scores = self.reference.module(input_ids=row[None], use_cache=False).logits[0, :-1].double()
                losses.append(float(torch.nn.functional.cross_entropy(scores, row[1:])))
        return losses

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


def ways(bench: Bench, calibration: Path, console: Console) -> list[tuple[str, str, Callable[[], Any]]]:
    """(format, name, context in which the model has the weights) of everything that is compared."""
    found: list[tuple[str, str, Callable[[], Any]]] = []
    for format, rule in (("mxfp4", "floor"), ("nvfp4", "even")):
        for name, options in (
            (_BASELINE[format], {"scale": rule}),
            ("onnx-moe", {}),
            ("onnx-moe, calibrated", {"calibrate": calibration}),
        ):
            found.append(
                (
                    format,
                    name,
                    lambda f=format, o=options: with_fp4_weights(bench.reference.module, None, format=f, **o),
                )
            )
    found += [(peer.format, peer.name, partial(bench.with_peer, peer)) for peer in installed_peers(console)]
    return sorted(found, key=lambda way: way[0])


def main(output: Annotated[Path | None, typer.Option(help="Write every figure there, as JSON.")] = None) -> None:
    """Perplexity and output error of the trained model with each quantiser's experts."""
    console = Console()
    calibration_text, text = split_text()
    with tempfile.TemporaryDirectory(prefix="onnx-moe-accuracy-") as folder:
        calibration = Path(folder) / "calibration.txt"
        calibration.write_text(calibration_text, encoding="utf-8")
        bench = Bench(text)
        console.print(f"original: perplexity {np.exp(np.mean(bench.original)):.4f} on {bench.windows.size} tokens")
        rows: list[dict[str, Any]] = []
        for format, name, context in ways(bench, calibration, console):
            with context():
                losses, error = bench.losses(), bench.output_error()
            rows.append({"format": format, "name": name, "losses": losses, "output_error": error})
            console.print(f"[dim]{format}, {name}: {np.exp(np.mean(losses)):.4f}[/]", highlight=False)
    _show(console, bench.original, rows)
    if output is not None:
        output.write_text(json.dumps({"original": bench.original, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _show(console: Console, original: list[float], rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"what FP4 costs, {len(original)} windows of {_WINDOW} tokens, 95 % intervals")
    for heading in ("format", "quantiser", "perplexity", "increase", "of it removed", "output error"):
        table.add_column(heading, justify="left" if heading in ("format", "quantiser") else "right")
    losses = {(row["format"], row["name"]): np.array(row["losses"]) for row in rows}
    for row in rows:
        own, baseline = losses[row["format"], row["name"]], losses[row["format"], _BASELINE[row["format"]]]
        increase, gain = Interval.of(list(own - original)), Interval.of(list(baseline - own))
        cost = np.mean(baseline - original) / 100
        low, high = 100 * np.expm1(increase.low), 100 * np.expm1(increase.high)
        table.add_row(
            row["format"],
            row["name"],
            f"{np.exp(own.mean()):.4f}",
            f"{100 * np.expm1(increase.mean):.2f} % ({low:.2f} to {high:.2f})",
            f"{gain.mean / cost:.0f} % ({gain.low / cost:.0f} to {gain.high / cost:.0f})",
            f"{row['output_error']:.4f}",
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
