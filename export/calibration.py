"""Calibration: experts quantised for the tokens that a text sends to them, layer after layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_moe.errors import ExportError
from onnx_moe.export.calibration_activations import Recorder
from onnx_moe.export.calibration_layer import MIN_TOKENS, CalibratedLayer, calibrate_layer
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.experts import Quantization, decoded_values
from onnx_moe.export.patching import replace_data
from onnx_moe.quantization import dequantize

#: Tokens of a window, and windows at most, that a text is read in.
WINDOW_TOKENS, MAX_WINDOWS = 512, 128


def calibration_runs(
    module: Any, calibrate: str | os.PathLike[str] | Sequence[Sequence[Any]]
) -> list[Callable[[], object]]:
    """Calls of `module` on a text file (for a language model that knows its tokenizer) or on positional inputs."""
    if not isinstance(calibrate, str | os.PathLike):
        return [lambda inputs=tuple(inputs): module(*inputs) for inputs in calibrate]  # type: ignore[misc]
    windows = torch.from_numpy(text_windows(module, Path(calibrate)))
    return [lambda row=row: module(input_ids=row[None], use_cache=False) for row in windows]  # type: ignore[misc]


def text_windows(module: Any, path: Path) -> NDArray[np.int64]:
    """Token ids [windows, WINDOW_TOKENS] of the text, spread evenly over it if it is long."""
    from transformers import AutoTokenizer

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"The calibration text {path} cannot be read: {error}. Give a text file in UTF-8.") from error
    source = getattr(module, "name_or_path", "")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"The tokenizer of {type(module).__name__} is not at {source!r}: load the model with from_pretrained, or "
            "give calibrate as a list of positional inputs."
        ) from error
    ids = np.array(tokenizer(text)["input_ids"], np.int64)
    count = len(ids) // WINDOW_TOKENS
    if count == 0:
        raise ExportError(
            f"The calibration text {path} has {len(ids)} tokens: give one of at least {WINDOW_TOKENS}, better of "
            "thousands for each expert."
        )
    windows = ids[: count * WINDOW_TOKENS].reshape(count, WINDOW_TOKENS)
    chosen: NDArray[np.int64] = windows[np.linspace(0, count - 1, min(count, MAX_WINDOWS)).astype(int)]
    return chosen


def calibrate_layers(
    module: torch.nn.Module,
    layers: list[MoELayer],
    runs: Sequence[Callable[[], object]],
    quantization: Quantization,
    tell: Callable[[str], None],
) -> dict[str, CalibratedLayer]:
    """FP4 experts of each of the module's layers by its path, for `runs`, calls of the module.

    A layer sees its inputs as the layers before it, quantised, leave them.
    """
    calibrated: dict[str, CalibratedLayer] = {}
    originals: dict[torch.Tensor, torch.Tensor] = {}
    quantized_runs, original_runs = (Recorder(module, layers, runs) for _ in range(2))
    with ExitStack() as stack:
        for number, layer in enumerate(layers, 1):
            tell(f"calibrating {layer.path or 'the experts'} ({number} of {len(layers)})")
            activations = quantized_runs.record(layer)
            with replace_data(originals):
                original = original_runs.record(layer).hidden_states
            result = calibrate_layer(
                layer, activations, original if originals else activations.hidden_states, quantization
            )
            calibrated[layer.path] = result
            if number < len(layers):
                values = decoded_values(
                    layer, [[dequantize(part) for part in parts] for parts in (result.up, result.down)]
                )
                originals.update({tensor: tensor.data for tensor in values})
                stack.enter_context(replace_data(values))
    return calibrated


def few_tokens_note(path: str, layer: CalibratedLayer) -> str:
    """What is to be said of a layer with experts that the text hardly reached."""
    experts = ", ".join(map(str, layer.few_tokens[:8])) + (", …" if len(layer.few_tokens) > 8 else "")
    return (
        f"{path or 'the experts'}: {len(layer.few_tokens)} experts ({experts}) saw fewer than {MIN_TOKENS} of the "
        f"{layer.tokens} calibration tokens and were quantized for all of them: a longer text fits them better."
    )
