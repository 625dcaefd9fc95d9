"""Calibration: experts quantised for the tokens that a text sends to them, layer after layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onnx_moe.errors import ExportError
from onnx_moe.export.calibration_activations import Activations, Recorder
from onnx_moe.export.calibration_solver import follow_inputs, quantize_second_order, second_moments
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.experts import Quantization, decoded_values, routed_and_shared
from onnx_moe.export.patching import replace_data
from onnx_moe.operators import expert_gemm_attributes
from onnx_moe.quantization import QuantizedWeights, dequantize
from onnx_moe.reference.expert_gemm import activate

#: Tokens of a window, and windows at most, that a text is read in.
WINDOW_TOKENS, MAX_WINDOWS = 512, 128
#: An expert that fewer tokens reach is quantised for all tokens of its layer instead.
MIN_TOKENS = 32
#: Tokens at most that such an expert is quantised for.
_POOLED_TOKENS = 4096
#: Bytes of Hessians and their factors that are worked on at once.
_BATCH_BYTES = 512 << 20


@dataclass
class CalibratedLayer:
    """FP4 experts of a layer: parts along the experts, the routed ones, then the shared ones.

    few_tokens: routed experts that the text sent fewer than MIN_TOKENS tokens to.
    """

    up: list[QuantizedWeights]
    down: list[QuantizedWeights]
    tokens: int
    few_tokens: list[int] = field(default_factory=list)


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


def calibrate_layer(
    layer: MoELayer, activations: Activations, original: torch.Tensor, quantization: Quantization
) -> CalibratedLayer:
    """The layer's experts, each quantised for the tokens that `activations` routes to it.

    original: the hidden states [T, H] of the same tokens in the model as it was: what the experts should make of them
    is what they made of those.
    """
    up, down = routed_and_shared(layer)
    for name, parts in (("up projection", up), ("down projection", down)):
        quantization.check_columns(parts[0], f"{layer.path or 'the module'}: {name}")
    result = CalibratedLayer([], [], len(activations.hidden_states))
    with _quick_products():
        _calibrate_parts(result, layer, activations, original, quantization)
    return result


@contextmanager
def _quick_products() -> Iterator[None]:
    """Products of float32 matrices round their factors to bfloat16 where the processor multiplies that faster (twice as
    fast as float32 here): 2⁻⁹ of each factor, beside FP4's tenth. Sums, and what is solved for, stay float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _calibrate_parts(
    result: CalibratedLayer,
    layer: MoELayer,
    activations: Activations,
    original: torch.Tensor,
    quantization: Quantization,
) -> None:
    up, down = routed_and_shared(layer)
    counts = torch.bincount(activations.expert_ids.flatten(), minlength=layer.experts.num_experts)
    result.few_tokens = [expert for expert, count in enumerate(counts.tolist()) if count < MIN_TOKENS]
    for part, (ups, downs) in enumerate(zip(up, down, strict=True)):
        tokens = _Tokens(layer, activations, original, set(result.few_tokens), part == 1)
        quantized = [_calibrate_batch(tokens, ups, downs, batch, quantization) for batch in _batches(ups, downs)]
        result.up.append(_stack([pair[0] for pair in quantized]))
        result.down.append(_stack([pair[1] for pair in quantized]))


@dataclass
class _Tokens:
    """Which tokens each expert of one part, routed or shared, is quantised for."""

    layer: MoELayer
    activations: Activations
    original: torch.Tensor
    few_tokens: set[int]
    shared: bool

    def of(self, expert: int) -> _ExpertTokens:
        if self.shared:
            return self._some(slice(None), 1.0)
        if expert in self.few_tokens:
            return self._some(slice(None, None, -(-len(self.original) // _POOLED_TOKENS)), 1.0)
        tokens, weights = self.activations.routed_to(expert)
        return self._some(tokens, weights[:, None])

    def _some(self, tokens: slice | torch.Tensor, weights: torch.Tensor | float) -> _ExpertTokens:
        rows = self.activations.hidden_states[tokens]
        changed = self.original is not self.activations.hidden_states
        return _ExpertTokens(rows, self.original[tokens] if changed else rows, weights)

    def activated(self, expert: int, rows: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Inputs [n, I] of the down projection that the up projection `up` [N, K] makes of `rows`."""
        experts = self.layer.experts
        products = rows @ up.float().T
        if experts.up.bias is not None:
            products = products + experts.up.bias[expert].detach().float()
        if experts.gate is not None:
            return experts.gate(products)
        return activate(products, expert_gemm_attributes(experts.activation))


@dataclass
class _ExpertTokens:
    """Inputs [n, H] of an expert as they are and as they were, and the weights [n, 1] of its output: with them, squared
    errors count as they do in the layer's output."""

    rows: torch.Tensor
    original: torch.Tensor
    weights: torch.Tensor | float

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the up projection, weighted; the same tensor twice where nothing changed."""
        rows = self.rows * self.weights
        return rows, rows if self.original is self.rows else self.original * self.weights


def _calibrate_batch(
    tokens: _Tokens, ups: torch.Tensor, downs: torch.Tensor, experts: range, quantization: Quantization
) -> tuple[QuantizedWeights, QuantizedWeights]:
    up = _fit((_Fit.of(ups[expert], *tokens.of(expert).inputs()) for expert in experts), quantization)
    values = torch.from_numpy(dequantize(up))

    def down_fits() -> Iterator[_Fit]:
        for value, expert in zip(values, experts, strict=True):
            own = tokens.of(expert)
            rows = tokens.activated(expert, own.rows, value) * own.weights
            original = tokens.activated(expert, own.original, ups[expert]) * own.weights
            yield _Fit.of(downs[expert], rows, original)

    return up, _fit(down_fits(), quantization)


@dataclass(frozen=True)
class _Fit:
    """What a matrix is to become in FP4: `weights` [N, K], with errors that count as `hessian` [K, K] says."""

    weights: torch.Tensor
    hessian: torch.Tensor

    @staticmethod
    def of(matrix: torch.Tensor, rows: torch.Tensor, original: torch.Tensor) -> _Fit:
        """For inputs [n, K] as they are and as they were."""
        moments = second_moments(rows)
        moved = matrix.float() if original is rows else follow_inputs(matrix, rows, original, moments)
        return _Fit(moved, moments / max(len(rows), 1))


def _fit(fits: Iterable[_Fit], quantization: Quantization) -> QuantizedWeights:
    weights, hessians = zip(*((fit.weights, fit.hessian) for fit in fits), strict=True)
    return quantize_second_order(
        torch.stack(weights), torch.stack(hessians), quantization.format, quantization.block_size
    )


def _batches(ups: torch.Tensor, downs: torch.Tensor) -> Iterator[range]:
    """Ranges of experts whose matrices and Hessians fit _BATCH_BYTES, at least one."""
    columns = max(ups.shape[2], downs.shape[2])
    size = max(1, _BATCH_BYTES // (4 * (2 * columns * columns + 2 * columns * max(ups.shape[1], downs.shape[1]))))
    return (range(start, min(start + size, len(ups))) for start in range(0, len(ups), size))


def _stack(parts: list[QuantizedWeights]) -> QuantizedWeights:
    first = parts[0]
    scales = [part.global_scale for part in parts if part.global_scale is not None]
    return QuantizedWeights(
        weights=np.concatenate([part.weights for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        global_scale=np.concatenate(scales) if scales else None,
        format=first.format,
        block_size=first.block_size,
    )
