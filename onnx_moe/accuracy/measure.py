"""Measuring an exported model against the one that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from onnx_moe.accuracy.experts import Experts, expected_rmse, relative_rmse
from onnx_moe.accuracy.exported import ExportedLayer, ExportedModel, LayerRun
from onnx_moe.accuracy.golden import Golden, make_golden
from onnx_moe.accuracy.limits import REPEATED, RUNNING_TOKENS, outlying
from onnx_moe.accuracy.reference import ReferenceModel, activation_of, original_matrices
from onnx_moe.accuracy.report import (
    AccuracyReport,
    ExpertWeights,
    Interval,
    LayerAccuracy,
    TextAccuracy,
    Workload,
)
from onnx_moe.errors import InvalidInputError, InvalidModelError
from onnx_moe.export.discovery import MoELayer
from onnx_moe.session import InferenceSession

#: Rows at most that float64 evaluations of a layer look at, spread over all positions.
_EVALUATED_ROWS = 512


@dataclass(frozen=True)
class Measurement:
    """How much is measured. text: held-out; None: the text that ships with the package.

    sizes: windows of each number of tokens. text_windows windows of text_tokens tokens are predicted.
    """

    text: Path | None = None
    sizes: tuple[tuple[int, int], ...] = ((1, 32), (128, 4), (2048, 1))
    text_windows: int = 32
    text_tokens: int = 512
    make_session: Callable[[bytes, onnxruntime.SessionOptions], onnxruntime.InferenceSession] = field(
        default=InferenceSession
    )

    def read_text(self) -> str:
        if self.text is not None:
            try:
                return self.text.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInputError(f"{self.text} cannot be read: {error}. Give a text file in UTF-8.") from error
        return (files("onnx_moe") / "data" / "tiny-glm" / "heldout.txt").read_text(encoding="utf-8")


def measurement_for(reference: ReferenceModel, wanted: Measurement) -> Measurement:
    """`wanted`, without windows that are longer than the model's context. InvalidInputError when none of RUNNING_TOKENS
    is left: `check` compares routing on them."""
    context = getattr(reference.module.config, "max_position_embeddings", 1 << 30)
    sizes = tuple((tokens, windows) for tokens, windows in wanted.sizes if tokens <= context)
    if RUNNING_TOKENS not in dict(sizes):
        raise InvalidInputError(
            f"Routing is compared on windows of {RUNNING_TOKENS} tokens, but the sizes are {list(dict(wanted.sizes))} "
            f"and the model's context is {context}: add that size, or measure a model with a longer context."
        )
    return Measurement(wanted.text, sizes, wanted.text_windows, min(wanted.text_tokens, context), wanted.make_session)


def measure(
    model: Path,
    reference: ReferenceModel,
    measurement: Measurement | None = None,
    golden: Golden | None = None,
    progress: Callable[[str], None] | None = None,
) -> AccuracyReport:
    """Compares the exported `model` with `reference` on held-out text.

    golden: tokens to predict; None: what the reference writes now. Raises InvalidModelError when the model's layers are
    not those of the reference.
    """
    tell = progress or (lambda _line: None)
    wanted = measurement_for(reference, measurement or Measurement())
    exported = ExportedModel(model, wanted.make_session)
    pairs = _paired_layers(exported, reference)
    tokens = np.array(reference.tokenizer(wanted.read_text())["input_ids"], np.int64)
    tell("comparing weights")
    calibrated = "onnx_moe.calibration" in exported.metadata
    experts = tuple(_expert_weights(pair, projection, calibrated) for pair in pairs for projection in ("up", "down"))
    workloads = []
    for name, windows in _workloads(reference, tokens, wanted):
        tell(f"running {name}")
        workloads.append(_run_workload(name, windows, exported, reference, pairs))
    tell("predicting text")
    text = _predict_text(exported, reference, spread_windows(tokens, wanted.text_tokens, wanted.text_windows))
    tell("predicting golden tokens")
    golden = golden or make_golden(reference)
    logits, _ = exported.run(golden.sequence()[None])
    return AccuracyReport(
        model=str(model),
        reference=str(reference.module.name_or_path),
        format=pairs[0].exported.attributes(pairs[0].exported.up).format,
        calibrated=calibrated,
        top_k=pairs[0].reference.top_k,
        workloads=tuple(workloads),
        experts=experts,
        text=text,
        golden=golden.judge(logits[0]),
    )


@dataclass(frozen=True)
class _Pair:
    """A layer in both models: its weights as they were, and as its codes say."""

    exported: ExportedLayer
    reference: MoELayer
    original: Experts
    decoded: Experts


def _paired_layers(exported: ExportedModel, reference: ReferenceModel) -> list[_Pair]:
    if len(exported.layers) != len(reference.layers):
        raise InvalidModelError(
            f"The model has {len(exported.layers)} MoE layers and the reference {len(reference.layers)}: give the "
            "folder that the model was exported from."
        )
    pairs = []
    for layer, original in zip(exported.layers, reference.layers, strict=True):
        up, down = original_matrices(original)
        decoded_up, decoded_down = layer.matrices(layer.up), layer.matrices(layer.down)
        if original.experts.activation.get("gate_layout") == "interleaved" != layer.attributes(layer.up).gate_layout:
            up = torch.cat((up[:, 0::2], up[:, 1::2]), dim=1)  # the exporter put the gate's rows first
        if original.shared is not None and len(decoded_up) == original.experts.num_experts:
            # Exported as ordinary operators: no part of y. The reference may be compared with other models, too.
            original = replace(original, shared=None, shared_module=None)
            up, down = up[: len(decoded_up)], down[: len(decoded_up)]
        if up.shape != decoded_up.shape or down.shape != decoded_down.shape:
            raise InvalidModelError(
                f"{layer.name} holds experts {list(decoded_up.shape)}, the reference {list(up.shape)}: give the folder "
                "that the model was exported from."
            )
        biases = (layer.bias(layer.up), layer.bias(layer.down))
        activation = activation_of(original)
        pairs.append(
            _Pair(
                layer,
                original,
                Experts(up, down, activation, *biases),
                Experts(decoded_up, decoded_down, activation, *biases),
            )
        )
    return pairs


def _expert_weights(pair: _Pair, projection: str, calibrated: bool) -> ExpertWeights:
    options = pair.exported.attributes(getattr(pair.exported, projection))
    original, decoded = getattr(pair.original, projection), getattr(pair.decoded, projection)
    errors = relative_rmse(decoded, original)
    expected = expected_rmse(original, options.format, options.block_size)
    return ExpertWeights(
        pair.exported.name,
        projection,
        tuple(errors),
        tuple(expected),
        outlying(errors, expected, calibrated),
    )


def spread_windows(tokens: NDArray[np.int64], length: int, count: int) -> NDArray[np.int64]:
    """`count` windows [count, length], spread evenly over the text, fewer if they would overlap."""
    count = min(count, len(tokens) // length)
    if count == 0:
        raise InvalidModelError(
            f"The text has {len(tokens)} tokens, fewer than a window of {length}: give a longer one."
        )
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.stack([tokens[start : start + length] for start in starts])


def _workloads(
    reference: ReferenceModel, tokens: NDArray[np.int64], wanted: Measurement
) -> list[tuple[str, NDArray[np.int64]]]:
    """Text in windows of each size, and one token that is repeated."""
    workloads = [
        (f"{length} token{'s' if length > 1 else ''}", spread_windows(tokens, length, count))
        for length, count in wanted.sizes
    ]
    repeated = reference.tokenizer("the the", add_special_tokens=False)["input_ids"][-1]
    return [*workloads, (REPEATED, np.full((1, RUNNING_TOKENS), repeated, np.int64))]


def _run_workload(
    name: str,
    windows: NDArray[np.int64],
    exported: ExportedModel,
    reference: ReferenceModel,
    pairs: list[_Pair],
) -> Workload:
    _, ours = exported.run(windows)
    _, theirs = reference.run(windows, [pair.reference for pair in pairs])
    layers = [_compare_layer(pair, our, their, reference) for pair, our, their in zip(pairs, ours, theirs, strict=True)]
    return Workload(name, windows.shape[1], len(windows), tuple(layers))


def _compare_layer(pair: _Pair, ours: LayerRun, theirs: LayerRun, reference: ReferenceModel) -> LayerAccuracy:
    step = -(-len(ours.x) // _EVALUATED_ROWS)
    some = LayerRun(*(getattr(ours, entry.name)[::step] for entry in fields(LayerRun)))
    top_k = pair.reference.top_k
    expected = reference.route(pair.reference, ours.x)
    return LayerAccuracy(
        layer=pair.exported.name,
        relative_error=_relative(ours.y, theirs.y),
        mse=_mean_square(ours.y, theirs.y),
        hidden_mse=_mean_square(ours.stream, theirs.stream),
        stream_mse=_relative(ours.stream, theirs.stream) ** 2,
        fp4_error=_relative(some.y, pair.original.evaluate(some)),
        arithmetic_error=_relative(some.y, pair.decoded.evaluate(some)),
        routing_overlap=_overlap(ours.ids[:, :top_k], theirs.ids[:, :top_k]),
        router_agreement=None if expected is None else _overlap(ours.ids[:, :top_k], expected),
        distinct_experts=len(np.unique(ours.ids[:, :top_k])),
    )


def _mean_square(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.square(actual.astype(np.float64) - expected).mean())


def _relative(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """|actual - expected| / |expected|, Frobenius."""
    difference = actual.astype(np.float64) - expected
    size = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(difference)) / max(size, 1e-300)


def _overlap(ids: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Share of the experts of each row that are in the other's row too."""
    return float((ids[:, :, None] == others[:, None, :]).any(axis=2).mean())


def _predict_text(exported: ExportedModel, reference: ReferenceModel, windows: NDArray[np.int64]) -> TextAccuracy:
    differences, divergences, agreement, losses = [], [], [], []
    for row in windows:
        chosen = torch.from_numpy(row[1:, None])
        ours, theirs = (
            torch.from_numpy(logits[0, :-1]).double().log_softmax(-1)
            for logits in (exported.run(row[None])[0], reference.run(row[None])[0])
        )
        loss, reference_loss = (-log.gather(1, chosen).mean() for log in (ours, theirs))
        differences.append(float(loss - reference_loss))
        losses.append((float(loss), float(reference_loss)))
        divergences.append(float((theirs.exp() * (theirs - ours)).sum(-1).mean()))
        agreement.append(float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()))
    mean, reference_mean = np.mean(losses, axis=0)
    difference = Interval.of(differences)
    return TextAccuracy(
        windows=len(windows),
        tokens=windows.size,
        reference_perplexity=float(np.exp(reference_mean)),
        perplexity=float(np.exp(mean)),
        increase=Interval(*(float(np.exp(value)) - 1 for value in (difference.mean, difference.low, difference.high))),
        kl_divergence=Interval.of(divergences),
        top1_agreement=float(np.mean(agreement)),
    )
