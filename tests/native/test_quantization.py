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

from onnx_moe import OnnxMoeError, QuantizedWeights, _native, dequantize, quantize
from onnx_moe.errors import InvalidAttributeError, InvalidInputError

Array = NDArray[Any]

E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
DISTRIBUTIONS = ("normal", "laplace", "sparse", "outliers")
FORMATS = ("mxfp4", "nvfp4", "fp4")
RULES = tuple(_native.SCALE_RULES)
#: The values of all 256 scales.
SCALES = {
    format: np.arange(256, dtype=np.uint8).view(scale_type).astype(np.float32)
    for format, scale_type in (("mxfp4", ml_dtypes.float8_e8m0fnu), ("nvfp4", ml_dtypes.float8_e4m3fn))
}


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
    elif distribution == "clipped":  # best with the largest of a block of 32 clipped to 3/4, for the others' sake
        values = 20 * random.choice([0.25, 0.75, 1.25, 1.75], shape)
        values[..., ::32] = 20 * 4.1
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


@pytest.mark.parametrize(("format", "block"), [("mxfp4", 32), ("nvfp4", 16)])
def test_every_scale_decodes_to_its_value(format: str, block: int) -> None:
    weights = np.full((256, 1, block // 2), 0x22, np.uint8)  # ones
    scales = np.arange(256, dtype=np.uint8)[:, None, None]
    decoded = dequantize(QuantizedWeights(weights, scales, None, format, block))
    np.testing.assert_array_equal(decoded, np.broadcast_to(SCALES[format][:, None, None], decoded.shape))


def test_every_code_decodes_to_its_value() -> None:
    weights = (np.arange(16) | np.arange(16)[:, None] << 4).astype(np.uint8)  # every pair of codes
    decoded = dequantize(QuantizedWeights(weights, np.full((16, 1), 127, np.uint8), None, "mxfp4", 32))
    expected = np.stack(np.broadcast_arrays(E2M1, E2M1[:, None]), axis=-1).reshape(16, 32)
    np.testing.assert_array_equal(decoded.view(np.uint32), expected.view(np.uint32))  # the signs of zeros too


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
    assert quantized.global_scale == per_tensor_amax_to_scale(tensor.abs().max()).numpy()
    unclamped = theirs > 0x08  # torchao lifts smaller scales to 2^-6, which loses what E4M3's subnormals could hold
    assert unclamped.mean() > (0.2 if distribution == "sparse" else 0.9)
    np.testing.assert_array_equal(quantized.scales[unclamped], theirs[unclamped])
    expected = QuantizedWeights(
        packed.view(torch.uint8).numpy().reshape(64, 128), theirs, quantized.global_scale, "nvfp4", 16
    )
    ours, reference = (dequantize(value).reshape(64, 16, 16) for value in (quantized, expected))
    np.testing.assert_array_equal(ours[unclamped], reference[unclamped])


@pytest.mark.parametrize("format", ["nvfp4", "fp4"])
def test_rules_round_the_scale_that_maps_the_maximum_to_six(format: str) -> None:
    """Scales with a mantissa: each one, each middle of two, and what lies beside it, rounded by ml_dtypes or numpy."""
    block, scale_type = (16, ml_dtypes.float8_e4m3fn) if format == "nvfp4" else (32, np.float16)
    codes = np.arange(1, 0x7E, dtype=np.uint8) if format == "nvfp4" else np.arange(1, 0x7BFF, 7, dtype=np.uint16)

    def values(some_codes: Array) -> NDArray[np.float32]:
        floats: NDArray[np.float32] = some_codes.view(scale_type).astype(np.float32)
        return floats

    middles = (values(codes) + values(codes + codes.dtype.type(1))) / 2
    ideal = np.concatenate([values(codes), middles, middles * np.float32(1 + 2**-18), middles * np.float32(1 - 2**-18)])
    nearest = ideal.astype(scale_type).view(codes.dtype)
    down = nearest - (values(nearest) > ideal).astype(codes.dtype)
    up = down + (values(down) < ideal).astype(codes.dtype)

    weights = np.zeros((len(ideal) + 1, block), np.float32)
    weights[:-1, 0] = 6 * ideal
    weights[-1] = 6 * 448  # nvfp4's global scale is 1 with it
    for rule, expected in (("even", nearest), ("floor", down), ("ceil", up), ("rceil", up)):
        scales = quantize(weights, format, scale=rule, block_size=block).scales[:-1, 0]
        np.testing.assert_array_equal(scales.view(codes.dtype), expected, rule)


def block_errors(weights: Array, quantized: QuantizedWeights) -> Array:
    """Squared error of each block, in float64."""
    difference = dequantize(quantized).astype(np.float64) - weights
    errors: Array = (difference.reshape(-1, quantized.block_size) ** 2).sum(-1)
    return errors


def least_errors(weights: Array, quantized: QuantizedWeights) -> Array:
    """Least squared error of each block over all scales that the format has, rounding to the nearest value."""
    blocks = np.abs(weights.astype(np.float64).reshape(-1, quantized.block_size))
    global_scale = 1.0 if quantized.global_scale is None else float(quantized.global_scale)
    values = SCALES[quantized.format].astype(np.float64) * global_scale
    best = np.full(len(blocks), np.inf)
    for scale in values[np.isfinite(values) & (values > 0)]:
        scaled = np.clip(blocks / scale, 0, 6)
        nearest = E2M1[:8][np.abs(scaled[..., None] - E2M1[:8]).argmin(-1)] * scale
        best = np.minimum(best, ((nearest - blocks) ** 2).sum(-1))
    return best


def with_roundings(errors: Array, weights: Array, block_size: int) -> Array:
    """What float32 may choose for the least of `errors`: weights w that are each 2 ulp off make |e - E| <= 2·√E·d + d²
    with d = 2^-22·|w|, and the sum of a block's squares is off by block_size·2^-24 of itself, in both candidates."""
    distance = 2.0**-22 * np.linalg.norm(weights.astype(np.float64).reshape(-1, block_size), axis=-1)
    return errors * (1 + block_size * 2.0**-23) + 4 * np.sqrt(errors) * distance + 2 * distance**2


@pytest.mark.parametrize("format", SCALES)
@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "clipped"])
def test_mse_finds_the_best_of_all_scales(format: str, distribution: str) -> None:
    weights = draw(distribution, (16, 128), seed=2)
    quantized = quantize(weights, format)
    best = least_errors(weights, quantized)
    assert (block_errors(weights, quantized) <= with_roundings(best, weights, quantized.block_size)).all()


@pytest.mark.parametrize("density", [1.0, 0.3, 0.08])
def test_mse_finds_the_best_scale_among_subnormal_ones(density: float) -> None:
    """Blocks so small beside the matrix's maximum that E4M3 has fewer digits for their scales."""
    random = np.random.default_rng(4)
    blocks = random.standard_normal((512, 16)) * (random.random((512, 16)) < density)
    weights = (blocks * 2.0 ** random.uniform(-17, -12, (512, 1))).astype(np.float32).reshape(64, 128)
    weights[0, 0] = 8
    quantized = quantize(weights, "nvfp4")
    assert (quantized.scales < 8).mean() > 0.5
    best = least_errors(weights, quantized)
    assert (block_errors(weights, quantized) <= with_roundings(best, weights, 16)).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_is_never_worse_than_a_rule(format: str, distribution: str) -> None:
    weights = draw(distribution, (32, 256), seed=3)
    # nvfp4 with the rules' global scale: under another one a block may be worse for the sake of the others.
    global_scale = quantize(weights, format, scale="even").global_scale
    quantized = quantize(weights, format, global_scale=global_scale)
    best = block_errors(weights, quantized)
    for rule in RULES:
        others = block_errors(weights, quantize(weights, format, scale=rule, global_scale=global_scale))
        assert (best <= with_roundings(others, weights, quantized.block_size)).all(), rule


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_searched_global_scale_is_the_best_of_eight(distribution: str) -> None:
    weights = draw(distribution, (32, 256), seed=6)  # all rows are sampled
    base = np.abs(weights).max() / np.float32(6 * 448)
    errors = [
        block_errors(weights, quantize(weights, "nvfp4", global_scale=base * np.float32(1 + step / 8))).sum()
        for step in range(8)
    ]
    searched = quantize(weights, "nvfp4")
    assert block_errors(weights, searched).sum() <= min(errors) * (1 + 1e-6)
    assert min(errors) < errors[0]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rule", RULES)
def test_magnitude_moves_the_scales_alone(format: str, rule: str) -> None:
    """A power of two goes into E8M0 scales, or the global scale, and into float16 scales as far as they reach."""
    weights = draw("normal", (8, 256), seed=5)
    quantized = quantize(weights, format, scale=rule)
    for exponent in (-3, 5) if format == "fp4" else (-110, -64, 64, 120):
        moved = quantize(np.ldexp(weights, exponent), format, scale=rule)
        np.testing.assert_array_equal(moved.weights, quantized.weights)
        decoded, expected = dequantize(moved), np.ldexp(dequantize(quantized), exponent)
        np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_input_types_give_the_codes_of_their_values(format: str, dtype: torch.dtype) -> None:
    weights = torch.from_numpy(draw("normal", (2, 3, 33, 128))).to(dtype)
    values = weights.float().numpy()
    numpy_type = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16, torch.float32: np.float32}[dtype]
    expected = quantize(values, format)
    transposed = weights.transpose(0, 1).contiguous().transpose(0, 1)  # of the same values, but not contiguous
    for same in (weights, transposed, values.astype(numpy_type), np.asfortranarray(values.astype(numpy_type))):
        actual = quantize(same, format)
        np.testing.assert_array_equal(actual.weights, expected.weights)
        np.testing.assert_array_equal(actual.scales, expected.scales)
        assert actual.weights.shape == (2, 3, 33, 64)
        if format == "nvfp4":
            assert actual.global_scale is not None
            np.testing.assert_array_equal(actual.global_scale, expected.global_scale)
            rule = quantize(same, format, scale="even").global_scale
            np.testing.assert_array_equal(rule, np.abs(values).max((2, 3)) / (6 * 448))


def test_a_stack_is_its_matrices() -> None:
    weights = draw("outliers", (2, 3, 5, 64))
    stack = quantize(weights, "nvfp4")
    assert stack.global_scale is not None
    for i, j in np.ndindex(2, 3):
        alone = quantize(weights[i, j], "nvfp4")
        np.testing.assert_array_equal(stack.weights[i, j], alone.weights)
        np.testing.assert_array_equal(stack.scales[i, j], alone.scales)
        assert stack.global_scale[i, j] == alone.global_scale
        np.testing.assert_array_equal(dequantize(stack)[i, j], dequantize(alone))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    distribution=st.sampled_from(DISTRIBUTIONS),
    exponent=st.integers(-100, 100),
    rule=st.sampled_from(RULES),
)
def test_decoded_mxfp4_weights_quantize_to_themselves(seed: int, distribution: str, exponent: int, rule: str) -> None:
    weights = draw(distribution, (2, 96), seed)
    decoded = dequantize(quantize(np.ldexp(weights, exponent), scale=rule))
    for again in (rule, "mse"):
        np.testing.assert_array_equal(dequantize(quantize(decoded, scale=again)), decoded)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), distribution=st.sampled_from(DISTRIBUTIONS), exponent=st.integers(-12, 0))
def test_decoded_nvfp4_weights_quantize_to_themselves(seed: int, distribution: str, exponent: int) -> None:
    weights = draw(distribution, (2, 96), seed)
    weights[0, 1:] = np.ldexp(weights[0, 1:], exponent)  # scales from those of zeros to the largest
    # 448 scales of 6 at the front keep the maximum, and so the global scale, as it is.
    weights[0, 0] = 2.0 ** np.ceil(np.log2(np.abs(weights).max() + 1e-3)) * 6 * 448
    weights[0, 1:16] = 0
    first = quantize(weights, "nvfp4")
    second = quantize(dequantize(first), "nvfp4")
    assert second.global_scale == first.global_scale
    np.testing.assert_array_equal(dequantize(second), dequantize(first))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rule", RULES)
def test_zeros_are_zeros(format: str, rule: str) -> None:
    weights = draw("normal", (2, 256))
    weights[0] = 0
    weights[1, 128:] = -0.0
    decoded = dequantize(quantize(weights, format, scale=rule))
    np.testing.assert_array_equal(decoded[0], 0)
    np.testing.assert_array_equal(decoded[1, 128:], 0)
    assert np.count_nonzero(decoded[1, :128]) > 64
    np.testing.assert_array_equal(dequantize(quantize(np.zeros((3, 128), np.float32), format, scale=rule)), 0)


@pytest.mark.parametrize("format", SCALES)
def test_smallest_and_largest_weights(format: str) -> None:
    # 6 · 2^125 is the largest value of mxfp4 that a float holds: the next, 2^128, is infinite.
    largest = np.full((1, 64), 1.5 * 2.0**127, np.float32)
    largest[0, ::2] *= -0.5
    # nvfp4's global scale, the maximum / (6 · 448), is rounded.
    decoded = dequantize(quantize(largest, format))
    assert np.abs(decoded / largest - 1).max() <= (0 if format == "mxfp4" else 2**-22)
    smallest = np.full((1, 64), 1e-42, np.float32)
    # Half of the smallest scale is 0.5 · 2^-127, or 0.5 · 2^-9 · 2^-126: all that is less is zero.
    half_step = {"mxfp4": 2.0**-129, "nvfp4": 2.0**-137}[format]
    assert np.abs(dequantize(quantize(smallest, format)).astype(np.float64) - smallest).max() <= half_step


def test_sizes() -> None:
    quantized = quantize(np.ones((4, 8, 64), np.float32), "nvfp4")
    assert quantized.nbytes == 4 * 8 * 64 // 2 + 4 * 8 * 64 // 16 + 4 * 4
    assert quantize(np.ones((4, 8, 64), np.float32)).nbytes == 4 * 8 * 64 // 2 + 4 * 8 * 64 // 32
    assert quantize(np.ones((8, 128), np.float32), "fp4").nbytes == 8 * 128 // 2 + 8 * 2


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3), ()], ids=str)
def test_no_matrices_or_rows(format: str, leading: tuple[int, ...]) -> None:
    quantized = quantize(np.ones((*leading, 0 if leading == () else 8, 128), np.float32), format)
    assert quantized.weights.size == quantized.scales.size == 0
    assert dequantize(quantized).shape == (*leading, 0 if leading == () else 8, 128)


BYTES = np.zeros((2, 3, 32), np.uint8)


@pytest.mark.parametrize(
    ("quantized", "message"),
    [
        (QuantizedWeights(BYTES, BYTES[..., :1], None, "mxfp4", 32), r"\[2, 3, 1\], but .* uint8 of shape \[2, 3, 2\]"),
        (QuantizedWeights(BYTES, BYTES[:1, :, :2], None, "mxfp4", 32), r"scales are uint8 of shape \[1, 3, 2\]"),
        (QuantizedWeights(BYTES, BYTES[..., :4].astype(np.float32), None, "nvfp4", 16), "scales are float32"),
        (QuantizedWeights(BYTES, BYTES[..., :2], None, "fp4", 32), r"scales are uint8 .* in fp4 take float16"),
        (QuantizedWeights(BYTES, BYTES[..., :4], np.ones(3, np.float32), "nvfp4", 16), r"\[3\], but must be \[2\]"),
        (QuantizedWeights(BYTES[..., :31], BYTES[..., :1], None, "mxfp4", 32), r"shape \[2, 3, 31\].*block of 32"),
        (QuantizedWeights(BYTES.view(np.int8), BYTES[..., :2], None, "mxfp4", 32), "weights are int8"),
        (QuantizedWeights(BYTES, BYTES[..., :2], None, "mxfp4", 16), "block_size=16"),
        (QuantizedWeights(BYTES, BYTES[..., :2], None, "int4", 32), "format='int4' is unknown"),
    ],
)
def test_parts_that_do_not_fit_are_not_decoded(quantized: QuantizedWeights, message: str) -> None:
    with pytest.raises(OnnxMoeError, match=message):
        dequantize(quantized)


@pytest.mark.parametrize(
    ("weights", "options", "error", "message"),
    [
        (np.ones((2, 64), np.float64), {}, InvalidInputError, "float64: only float32"),
        (np.ones((2, 60), np.float32), {}, InvalidInputError, r"\[2, 60\].*block of 32: pad K"),
        (np.ones(64, np.float32), {}, InvalidInputError, r"\[64\]"),
        (torch.ones(2, 64, dtype=torch.float64), {}, InvalidInputError, "float64: only float32"),
        (np.ones((2, 64), np.int8), {}, InvalidInputError, "int8: only float32"),
        (np.ones((2, 64), np.float32), {"format": "fp4"}, InvalidInputError, r"\[2, 64\].*block of 128: pad K"),
        (np.ones((2, 64), np.float32), {"format": "int4"}, InvalidAttributeError, "int4"),
        (np.ones((2, 64), np.float32), {"scale": "best"}, InvalidInputError, "'best' is unknown: use one of mse"),
        (np.ones((2, 64), np.float32), {"block_size": 16}, InvalidAttributeError, "block_size=16.*use 32"),
        (np.ones((2, 96), np.float32), {"format": "fp4", "block_size": 48}, InvalidAttributeError, "128, 64, 32"),
    ],
)
def test_errors(weights: Array, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize(weights, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    weights = np.ones((3, 64), np.float32)
    weights[2, 33] = value
    for format in ("mxfp4", "nvfp4"):
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            with pytest.raises(OnnxMoeError, match=rf"hold -?{abs(value)} at row 2, column 33: only finite"):
                quantize(weights.astype(dtype), format)
    stack = np.stack([np.ones_like(weights)] * 3 + [weights] + [np.ones_like(weights)] * 2).reshape(2, 3, 3, 64)
    with pytest.raises(OnnxMoeError, match=r"\[1, 0\].* at row 2, column 33"):
        quantize(stack)
