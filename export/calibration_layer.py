"""Calibrating one layer: each expert in FP4 for the tokens that are routed to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from onnx_moe.export.calibration_activations import Activations
from onnx_moe.export.calibration_solver import follow_inputs, quantize_second_order, second_moments
from onnx_moe.export.discovery import MoELayer
from onnx_moe.export.experts import Quantization, routed_and_shared
from onnx_moe.operators import expert_gemm_attributes
from onnx_moe.quantization import QuantizedWeights, dequantize
from onnx_moe.reference.expert_gemm import activate

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
    counts = torch.bincount(activations.expert_ids.flatten(), minlength=layer.experts.num_experts)
    few_tokens = [expert for expert, count in enumerate(counts.tolist()) if count < MIN_TOKENS]
    result = CalibratedLayer([], [], len(activations.hidden_states), few_tokens)
    with _quick_products():
        for part, (ups, downs) in enumerate(zip(up, down, strict=True)):
            tokens = _Tokens(layer, activations, original, set(few_tokens), part == 1)
            quantized = [_calibrate_batch(tokens, ups, downs, batch, quantization) for batch in _batches(ups, downs)]
            result.up.append(_stack([pair[0] for pair in quantized]))
            result.down.append(_stack([pair[1] for pair in quantized]))
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
