"""Calibration: the solver against a plain one in float64, and what it does to a layer's output."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import onnx_moe
from onnx_moe.errors import ExportError
from onnx_moe.export import calibration_solver as solver
from onnx_moe.export import with_fp4_weights
from onnx_moe.export.calibration_activations import Activations
from onnx_moe.export.calibration_layer import calibrate_layer
from onnx_moe.export.calibration_solver import DAMPING, quantize_second_order
from onnx_moe.export.discovery import find_layers
from onnx_moe.export.experts import Quantization, routed_and_shared
from onnx_moe.nn import SparseMoE
from onnx_moe.quantization import dequantize, quantize

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def correlated_rows(count: int, columns: int, seed: int) -> torch.Tensor:
    """Rows that lie near a space of a quarter of the columns, like activations."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    return torch.randn(count, columns // 4, generator=generator) @ mixing + 0.3 * torch.randn(
        count, columns, generator=generator
    )


def column_by_column(weights: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """GPTQ as its paper states it, in float64: no blocks of columns, the Hessian of what is left inverted each time."""
    remaining, result = weights.double().clone(), torch.empty_like(weights, dtype=torch.float64)
    damped = hessian.double() + DAMPING * hessian.diagonal().double().mean() * torch.eye(len(hessian))
    for column in range(weights.shape[1]):
        scaled = remaining[:, column] / scales[:, column]
        nearest = E2M1[(scaled.abs()[:, None] - E2M1).abs().argmin(dim=1)].copysign(scaled)
        result[:, column] = nearest * scales[:, column]
        inverse = torch.linalg.inv(damped[column:, column:])
        error = (remaining[:, column] - result[:, column]) / inverse[0, 0]
        remaining[:, column:] -= error[:, None] * inverse[0]
    return result


@pytest.mark.parametrize(
    ("format", "columns", "group"), [("mxfp4", 160, 512), ("nvfp4", 144, 512), ("fp4", 160, 512), ("mxfp4", 288, 256)]
)
def test_the_solver_is_gptq(format: str, columns: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """160 and 144 columns: the last lot of columns is no full one. 288: two lots in a group, one in the next."""
    monkeypatch.setattr(solver, "_GROUP_COLUMNS", group)
    weights = torch.randn(3, 24, columns, generator=torch.Generator().manual_seed(0))
    rows = [correlated_rows(300, columns, seed) for seed in range(3)]
    hessians = torch.stack([x.T @ x / len(x) for x in rows])
    block = 32 if format == "fp4" else 0
    quantized = quantize_second_order(weights, hessians, format, block, sweeps=0)
    decoded = torch.from_numpy(dequantize(quantized))
    ones = dequantize(
        onnx_moe.QuantizedWeights(
            np.full_like(quantized.weights, 0x22),
            quantized.scales,
            quantized.global_scale,
            format,
            quantized.block_size,
        )
    )
    for matrix in range(3):
        expected = column_by_column(weights[matrix], hessians[matrix], torch.from_numpy(ones[matrix]).double())
        # A value on the edge between two codes may fall to either side, and moves what follows in its row.
        same_rows = (decoded[matrix].double() - expected).abs().amax(dim=1) < 1e-5
        assert same_rows.double().mean() > 0.9


def test_groups_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(2, 24, 416, generator=torch.Generator().manual_seed(14))
    rows = correlated_rows(600, 416, 15)
    hessians = (rows.T @ rows / 600).expand(2, 416, 416)
    decoded = []
    for group in (128, 256, 512):
        monkeypatch.setattr(solver, "_GROUP_COLUMNS", group)
        decoded.append(torch.from_numpy(dequantize(quantize_second_order(weights, hessians, "mxfp4"))))
    for other in decoded[1:]:
        # A code on an edge may fall to either side, and moves what follows in its row.
        assert (other == decoded[0]).all(dim=-1).double().mean() > 0.5


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_refining_lowers_the_error_of_every_row_and_keeps_the_scales(format: str) -> None:
    weights = torch.randn(2, 24, 160, generator=torch.Generator().manual_seed(9))
    rows = [correlated_rows(400, 160, seed) for seed in (10, 11)]
    hessians = torch.stack([x.T @ x / len(x) for x in rows])
    mean = hessians.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    damped = (hessians + DAMPING * mean * torch.eye(160)).double()

    def error(quantized: onnx_moe.QuantizedWeights) -> torch.Tensor:
        difference = torch.from_numpy(dequantize(quantized)).double() - weights.double()
        return ((difference @ damped) * difference).sum(dim=-1)

    first = quantize_second_order(weights, hessians, format, sweeps=0)
    refined = quantize_second_order(weights, hessians, format)
    np.testing.assert_array_equal(refined.scales, first.scales)
    assert (error(refined) <= error(first) * (1 + 1e-5)).all()
    assert error(refined).sum() < 0.98 * error(first).sum()


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_without_correlation_it_is_plain_rounding(format: str) -> None:
    weights = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1))
    quantized = quantize_second_order(weights, torch.eye(64).expand(2, 64, 64), format)
    plain = quantize(weights, format)
    np.testing.assert_array_equal(dequantize(quantized), dequantize(plain))


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_without_inputs_it_is_plain_rounding(format: str) -> None:
    """An expert whose inputs were all zeros."""
    weights = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1))
    quantized = quantize_second_order(weights, torch.zeros(2, 64, 64), format)
    np.testing.assert_array_equal(dequantize(quantized), dequantize(quantize(weights, format)))


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_fewer_tokens_than_columns_leave_nothing_unbounded(format: str) -> None:
    weights = torch.randn(1, 16, 128, generator=torch.Generator().manual_seed(3))
    rows = torch.randn(7, 128, generator=torch.Generator().manual_seed(4))
    decoded = torch.from_numpy(dequantize(quantize_second_order(weights, (rows.T @ rows)[None] / 7, format)))
    assert ((decoded[0] - weights[0]) @ rows.T).norm() < 0.1 * (weights[0] @ rows.T).norm()
    assert (decoded - weights).norm() < weights.norm()


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_output_error_falls(format: str) -> None:
    weights = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(2))
    rows, unseen = correlated_rows(900, 128, 3).split((600, 300))
    choices = (quantize_second_order(weights, (rows.T @ rows)[None] / 600, format), quantize(weights, format))
    errors = [(unseen @ (torch.from_numpy(dequantize(some))[0] - weights[0]).T).norm() for some in choices]
    assert errors[0] < 0.6 * errors[1]


def test_importance_moves_error_to_columns_that_count_less() -> None:
    weights = np.random.default_rng(4).standard_normal((64, 64)).astype(np.float32)
    importance = np.where(np.arange(64) % 2 == 0, 100.0, 0.01).astype(np.float32)

    def weighted_error(quantized: onnx_moe.QuantizedWeights) -> float:
        return float((importance * (dequantize(quantized) - weights) ** 2).sum())

    for format in ("mxfp4", "nvfp4", "fp4"):
        block = 32 if format == "fp4" else 0
        aware = quantize(weights, format, importance=importance, block_size=block)
        assert weighted_error(aware) < 0.999 * weighted_error(quantize(weights, format, block_size=block))
        same = quantize(weights, format, importance=np.full(64, 7.0), block_size=block)
        np.testing.assert_array_equal(same.weights, quantize(weights, format, block_size=block).weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": np.ones(32)}, r"importance has shape \[32\], but must be \[64\]"),
        ({"importance": np.full(64, -1.0)}, "negative or not finite"),
        ({"importance": np.full(64, np.nan)}, "negative or not finite"),
        ({"importance": np.ones(64), "scale": "even"}, "use scale='mse'"),
        ({"global_scale": np.float32(1.0)}, "mxfp4 does not have"),
        ({"global_scale": np.ones(3), "format": "nvfp4"}, r"global_scale has shape \[3\]"),
        ({"global_scale": np.float32(-1.0), "format": "nvfp4"}, "not a positive number"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(onnx_moe.OnnxMoeError, match=message):
        quantize(np.ones((2, 64), np.float32), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("format", "scale_type"), [("mxfp4", "float8_e8m0fnu"), ("nvfp4", "float8_e4m3fn")])
def test_other_readers_decode_the_same_values(format: str, scale_type: str) -> None:
    """The bytes of both ways to quantise, as ml_dtypes reads them: E2M1 codes, low nibble first, and E8M0 or E4M3."""
    weights = torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(12))
    rows = correlated_rows(200, 96, 13)
    hessians = (rows.T @ rows).expand(2, 96, 96) / 200
    for quantized in (quantize(weights, format), quantize_second_order(weights, hessians, format)):
        codes = np.stack((quantized.weights & 15, quantized.weights >> 4), axis=-1).reshape(weights.shape)
        values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
        scales = quantized.scales.view(getattr(ml_dtypes, scale_type)).astype(np.float64)
        expected = values * scales.repeat(quantized.block_size, axis=-1)
        if quantized.global_scale is None:
            np.testing.assert_array_equal(dequantize(quantized), expected)
        else:  # a float scale: the order of two products shows in the last bit
            expected *= quantized.global_scale[:, None, None].astype(np.float64)
            np.testing.assert_allclose(dequantize(quantized), expected, rtol=2.0**-22, atol=0)


def make_layer(num_experts: int = 4) -> SparseMoE:
    torch.manual_seed(5)
    return SparseMoE(hidden_size=64, intermediate_size=32, num_experts=num_experts, top_k=2)


def test_a_calibrated_layer(tmp_path: Path) -> None:
    layer = make_layer()
    rows = correlated_rows(600, 64, 6)[None]
    text, unseen = [(rows[:, :200],), (rows[:, 200:400],)], rows[:, 400:]
    with torch.no_grad():
        exact = layer(unseen)
        with with_fp4_weights(layer, (unseen,)):
            plain = layer(unseen)
        with with_fp4_weights(layer, (unseen,), calibrate=text):
            calibrated = layer(unseen)
    assert (calibrated - exact).norm() < 0.8 * (plain - exact).norm()

    report = onnx_moe.export(layer, (unseen,), tmp_path / "layer.onnx", calibrate=text)
    assert report.notes == ()
    session = onnx_moe.InferenceSession(tmp_path / "layer.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: unseen.numpy()})
    np.testing.assert_allclose(y, calibrated.numpy(), rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


def test_experts_that_see_few_tokens_are_named(tmp_path: Path) -> None:
    layer = make_layer(num_experts=8)
    x = correlated_rows(20, 64, 7)[None]
    report = onnx_moe.export(layer, (x,), tmp_path / "layer.onnx", calibrate=[(x,)])
    (note,) = report.notes
    assert "8 experts (0, 1, 2, 3, 4, 5, 6, 7) saw fewer than 32 of the 20 calibration tokens" in note


def test_an_expert_that_sees_few_tokens_is_fitted_to_all_of_them() -> None:
    layer = make_layer()
    rows = correlated_rows(400, 64, 8)
    (found,) = find_layers(layer, lambda: layer(rows[None]), False)
    ids = torch.arange(800).reshape(400, 2) % 2
    ids[:5, 0] = 2  # expert 2 sees five tokens, expert 3 none
    activations = Activations(rows, ids, torch.full((400, 2), 0.5))
    calibrated = calibrate_layer(found, activations, rows, Quantization("mxfp4", 0, "mse", 0))
    assert calibrated.few_tokens == [2, 3]
    (matrices,), _ = routed_and_shared(found)
    fitted, plain = (torch.from_numpy(dequantize(each)) for each in (calibrated.up[0], quantize(matrices)))
    for expert in range(4):
        errors = [(rows @ (decoded[expert] - matrices[expert]).T).norm() for decoded in (fitted, plain)]
        assert errors[0] < 0.7 * errors[1], expert


def test_a_text_needs_a_language_model(tmp_path: Path) -> None:
    x = correlated_rows(20, 64, 7)[None]
    with pytest.raises(ExportError, match=r"SparseMoE is no causal language model.*list of positional inputs"):
        onnx_moe.export(make_layer(), (x,), tmp_path / "layer.onnx", calibrate="text.txt")
    with pytest.raises(ExportError, match="does not follow scale='even': leave scale out"):
        onnx_moe.export(make_layer(), (x,), tmp_path / "layer.onnx", calibrate=[(x,)], scale="even")


@pytest.mark.parametrize("tokens", [40, 300])
def test_weights_that_follow_their_inputs_solve_the_ridge_regression(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(tokens, 96, generator=generator)
    original = rows + 0.3 * torch.randn(tokens, 96, generator=generator)
    weights = torch.randn(64, 96, generator=generator)
    x, was, w = rows.double(), original.double(), weights.double()
    moments = x.T @ x
    ridge = solver.RIDGE * moments.diagonal().mean() * torch.eye(96)
    expected = w + w @ torch.linalg.solve(moments + ridge, x.T @ (was - x)).T
    moved = solver.follow_inputs(weights, rows, original, solver.second_moments(rows))
    assert (moved - expected).norm() < 1e-5 * (expected - w).norm()
