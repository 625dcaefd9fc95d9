"""The quantiser and the codec, bit for bit against ml_dtypes and torchao; the mse rule against exhaustive search."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

from onnx_moe import OnnxMoeError, QuantizedWeights, dequantize, quantize
from onnx_moe.errors import InvalidAttributeError, InvalidInputError
from onnx_moe.formats import E4M3_VALUES, E8M0_VALUES

Array = NDArray[Any]

E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
DISTRIBUTIONS = ("normal", "laplace", "sparse", "outliers")


def codes_of(quantized: QuantizedWeights) -> Array:
    """One code an element, [..., N, K]."""
    packed = quantized.weights
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def draw(distribution: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape)
    if distribution == "laplace":
        values = random.laplace(size=shape)
    elif distribution == "sparse":
        values *= random.random(shape) < 0.05
    elif distribution == "outliers":
        values *= np.where(random.random(shape) < 0.02, 30.0, 1.0)
    return (0.05 * values).astype(np.float32)


def test_codes_are_the_nearest_values_with_ties_to_even() -> None:
    # With 6 in the block, every rule but mse gives it the scale 1: the codes are those of the values themselves.
    midpoints = (E2M1[:7] + E2M1[1:8]) / 2
    interesting = np.concatenate([E2M1[:8], midpoints, np.nextafter(midpoints, 9), np.nextafter(midpoints, -9)])
    values = np.concatenate([interesting, -interesting, np.random.default_rng(0).uniform(-6, 6, 392)])
    blocks = np.concatenate([values.astype(np.float32).reshape(-1, 15), np.full((30, 1), 6)], axis=1, dtype=np.float32)
    weights = blocks.reshape(15, 32)
    quantized = quantize(weights, scale="rceil")
    assert (quantized.scales == 127).all()
    expected = weights.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(codes_of(quantized), expected)


def test_values_beyond_six_scales_saturate() -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, :2] = 7.9, -7.9  # floor gives the scale 1
    quantized = quantize(weights, scale="floor")
    np.testing.assert_array_equal(dequantize(quantized)[0, :2], [6, -6])


@pytest.mark.parametrize(
    ("format", "block", "values"), [("mxfp4", 32, E8M0_VALUES), ("nvfp4", 16, E4M3_VALUES)], ids=["mxfp4", "nvfp4"]
)
def test_every_scale_decodes_to_its_value(format: str, block: int, values: tuple[float, ...]) -> None:
    weights = np.full((256, 1, block // 2), 0x22, np.uint8)  # ones
    scales = np.arange(256, dtype=np.uint8)[:, None, None]
    decoded = dequantize(QuantizedWeights(weights, scales, None, format, block))
    np.testing.assert_array_equal(decoded[:, 0, 0], np.array(values, np.float32))


def test_every_float16_scale_decodes_to_its_value() -> None:
    scales = np.arange(65536, dtype=np.uint16).view(np.float16)[:, None, None]
    weights = np.full((65536, 1, 16), 0x22, np.uint8)
    quantized = QuantizedWeights(weights.reshape(1, 65536, 16), scales.reshape(1, 65536, 1), None, "fp4", 32)
    np.testing.assert_array_equal(dequantize(quantized)[0, :, 0], scales.reshape(-1).astype(np.float32))


@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "rceil"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mxfp4_rules_equal_torchao(rule: str, distribution: str) -> None:
    weights = draw(distribution, (37, 320)) * np.float32(2.0) ** np.arange(-60, 51, 3, dtype=np.float32)[:, None]
    mode = ScaleCalculationMode[rule.upper()]
    scales, packed = to_mx(torch.from_numpy(weights), torch.float4_e2m1fn_x2, 32, mode)
    quantized = quantize(weights, scale=rule)
    np.testing.assert_array_equal(quantized.scales, scales.view(torch.uint8).numpy())
    expected = QuantizedWeights(packed.view(torch.uint8).numpy(), quantized.scales, None, "mxfp4", 32)
    # torchao writes +0 where we keep the sign of a zero.
    np.testing.assert_array_equal(dequantize(quantized), dequantize(expected))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_nvfp4_equals_torchao_where_it_does_not_clamp(distribution: str) -> None:
    weights = draw(distribution, (64, 256), seed=1)
    tensor = torch.from_numpy(weights)
    scales, packed = nvfp4_quantize(tensor, 16, per_tensor_amax_to_scale(tensor.abs().max()))
    quantized = quantize(weights, "nvfp4", scale="even")
    theirs = scales.view(torch.uint8).numpy().reshape(64, 16)
    unclamped = theirs > 0x08  # torchao lifts smaller scales to 2^-6, which loses what E4M3's subnormals could hold
    assert unclamped.mean() > (0.2 if distribution == "sparse" else 0.9)
    np.testing.assert_array_equal(quantized.scales[unclamped], theirs[unclamped])
    expected = QuantizedWeights(
        packed.view(torch.uint8).numpy().reshape(64, 128), theirs, quantized.global_scale, "nvfp4", 16
    )
    ours, reference = (dequantize(value).reshape(64, 16, 16) for value in (quantized, expected))
    np.testing.assert_array_equal(ours[unclamped], reference[unclamped])


def _least_errors(blocks: Array, scales: Array) -> Array:
    """Least squared error of each block [B, n] over all `scales`, rounding to the nearest value."""
    best = np.full(len(blocks), np.inf)
    for scale in scales:
        scaled = np.clip(np.abs(blocks) / scale, 0, 6)
        nearest = E2M1[:8][np.abs(scaled[..., None] - E2M1[:8]).argmin(-1)] * scale
        best = np.minimum(best, ((nearest - np.abs(blocks)) ** 2).sum(-1))
    return best


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_finds_the_best_of_all_scales(format: str, distribution: str) -> None:
    weights = draw(distribution, (16, 128), seed=2)
    quantized = quantize(weights, format)
    block = quantized.block_size
    global_scale = 1.0 if quantized.global_scale is None else float(quantized.global_scale)
    values = np.array(E8M0_VALUES[90:140] if format == "mxfp4" else E4M3_VALUES[1:127]) * global_scale
    blocks = weights.astype(np.float64).reshape(-1, block)
    errors = ((dequantize(quantized).astype(np.float64).reshape(-1, block) - blocks) ** 2).sum(-1)
    # Equal but for float32's rounding in the comparison of two nearly equal errors.
    np.testing.assert_allclose(errors, _least_errors(blocks, values), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4", "fp4"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_is_never_worse_than_a_rule(format: str, distribution: str) -> None:
    weights = draw(distribution, (32, 256), seed=3)

    def block_errors(rule: str) -> Array:
        quantized = quantize(weights, format, scale=rule)
        difference = dequantize(quantized).astype(np.float64) - weights
        return (difference.reshape(-1, quantized.block_size) ** 2).sum(-1)

    best = block_errors("mse")
    for rule in ("even", "ceil", "floor", "rceil"):
        assert (best <= block_errors(rule) * (1 + 1e-4) + 1e-12).all(), rule


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_input_types_give_the_codes_of_their_values(format: str, dtype: torch.dtype) -> None:
    weights = torch.from_numpy(draw("normal", (2, 3, 33, 128))).to(dtype)
    actual, expected = quantize(weights, format), quantize(weights.float().numpy(), format)
    np.testing.assert_array_equal(actual.weights, expected.weights)
    np.testing.assert_array_equal(actual.scales, expected.scales)
    assert actual.weights.shape == (2, 3, 33, 64)
    if format == "nvfp4":
        assert actual.global_scale is not None
        np.testing.assert_array_equal(actual.global_scale, np.abs(weights.float().numpy()).max((2, 3)) / (6 * 448))


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    exponent=st.integers(-100, 100),
    format=st.sampled_from(["mxfp4", "nvfp4"]),
    rule=st.sampled_from(["mse", "even"]),
)
def test_decoded_weights_quantize_to_themselves(seed: int, exponent: int, format: str, rule: str) -> None:
    weights = draw("normal", (2, 96), seed) * np.float32(2.0) ** exponent
    decoded = dequantize(quantize(weights, format, scale=rule))
    again = dequantize(quantize(decoded, format, scale="mse")).astype(np.float64)
    # nvfp4's global scale follows from the maximum, which decoding may have moved: equal up to its rounding.
    tolerance = 0.0 if format == "mxfp4" else 0.08
    assert np.linalg.norm(again - decoded) <= tolerance * np.linalg.norm(decoded.astype(np.float64))


def test_zeros_and_tiny_blocks() -> None:
    weights = np.zeros((2, 64), np.float32)
    weights[1, 32:] = 1e-42
    for format in ("mxfp4", "nvfp4"):
        decoded = dequantize(quantize(weights, format))
        np.testing.assert_array_equal(decoded[0], 0)
        assert np.isfinite(decoded).all()


def test_sizes() -> None:
    quantized = quantize(np.ones((4, 8, 64), np.float32), "nvfp4")
    assert quantized.nbytes == 4 * 8 * 64 // 2 + 4 * 8 * 64 // 16 + 4 * 4
    assert quantize(np.ones((0, 8, 64), np.float32)).weights.shape == (0, 8, 32)


@pytest.mark.parametrize(
    ("weights", "options", "error", "message"),
    [
        (np.ones((2, 64), np.float64), {}, InvalidInputError, "float64: only float32"),
        (np.ones((2, 60), np.float32), {}, InvalidInputError, r"\[2, 60\].*block of 32: pad K"),
        (np.ones(64, np.float32), {}, InvalidInputError, r"\[64\]"),
        (np.ones((2, 64), np.float32), {"format": "int4"}, InvalidAttributeError, "int4"),
        (np.ones((2, 64), np.float32), {"scale": "best"}, InvalidInputError, "'best' is unknown: use one of mse"),
        (np.ones((2, 64), np.float32), {"block_size": 16}, InvalidAttributeError, "block_size=16"),
    ],
)
def test_errors(weights: Array, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize(weights, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    weights = np.ones((3, 64), np.float32)
    weights[2, 33] = value
    with pytest.raises(OnnxMoeError, match=rf"hold -?{abs(value)} at row 2, column 33: only finite"):
        quantize(weights)
