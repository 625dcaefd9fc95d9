"""The simulator's language: each function and type through a small kernel, against what Metal's specification says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metal.simulator import address_spaces
from metal.simulator.errors import MslError
from metal.simulator.launch import Grid, Options, Statistics
from metal.simulator.library import KernelLibrary

from .simulation import SCHEDULES, needs_clang, needs_compiler

pytestmark = needs_compiler

Array = np.ndarray[Any, Any]
HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


def load(text: str) -> KernelLibrary:
    return KernelLibrary.load(HEAD + text)


def run(text: str, *buffers: Array, threads: int = 32, groups: int = 1, options: Options | None = None) -> Statistics:
    """Runs `kernel void k(text)`: parameters and body."""
    return load("kernel void k" + text).run("k", buffers, Grid((groups,), (threads,)), options=options)


I = "uint i [[thread_position_in_grid]]"  # noqa: E741


def test_half_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.arange(1 << 16, dtype=np.uint32) << 16, rng.integers(0, 1 << 32, 1 << 16, np.uint32)]).view(
        np.float32
    )
    out = np.zeros(x.size, np.uint16)
    run(f"(device const float* x, device half* o, {I}) {{ o[i] = half(x[i]); }}", x, out, threads=256, groups=512)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    same = (out == expected.view(np.uint16)) | (np.isnan(expected) & np.isnan(out.view(np.float16)))
    assert same.all()


def round_to_bfloat(values: Array) -> Array:
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bfloat_values(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_bfloat_rounds_after_every_operation() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0x3000, 0x5000, 4096).astype(np.uint16) for _ in range(2))
    out = np.zeros(a.size, np.uint16)
    body = "{ bfloat t = a[i] * b[i]; t += a[i]; o[i] = t; }"
    run(
        f"(device const bfloat* a, device const bfloat* b, device bfloat* o, {I}) {body}",
        a,
        b,
        out,
        threads=256,
        groups=16,
    )
    product = bfloat_values(round_to_bfloat(bfloat_values(a) * bfloat_values(b)))
    np.testing.assert_array_equal(out, round_to_bfloat(product + bfloat_values(a)))


def test_bfloat_keeps_infinity_and_nan() -> None:
    x = np.array([np.inf, -np.inf, np.nan, 3.4e38], np.float32)
    out = np.zeros(4, np.uint16)
    run(f"(device const float* x, device bfloat* o, {I}) {{ o[i] = bfloat(x[i]); }}", x, out, threads=4)
    assert out[:2].tolist() == [0x7F80, 0xFF80]
    assert np.isnan(bfloat_values(out[2:3]))
    assert out[3] == 0x7F80  # rounds past the largest


def test_vectors() -> None:
    out = np.zeros(16, np.float32)
    run(
        """(device float* o) {
        uint4 u = uint4(1, 2, 3, 4) << 4u;
        u &= uint4(0x30u);
        u |= 1u;
        o[0] = u.x; o[1] = u.y; o[2] = u.z; o[3] = u.w;
        float4 n = 1.0 / float4(2, 4, 8, 16);
        o[4] = n.x; o[5] = n[3];
        half2 h = as_type<half2>(0xC0003C00u);
        o[6] = h.x; o[7] = float(h.y);
        o[8] = as_type<float>(0x40490FDBu);
        o[9] = sizeof(float3); o[10] = alignof(half4); o[11] = sizeof(uint2);
        int2 d = int2(float2(-1.5, 2.5)) - 1;
        o[12] = d.x; o[13] = d.y;
        o[14] = (u > 16u).y;
        o[15] = 1.0 / 3;
        }""",
        out,
        threads=1,
    )
    third = np.float32(1) / np.float32(3)
    assert out.tolist() == [17, 33, 49, 1, 0.5, 1 / 16, 1, -2, np.float32(np.pi), 16, 8, 8, -2, 1, 1, third]


def test_functions_of_floats() -> None:
    x = np.concatenate([np.linspace(-80, 80, 61), [np.nan, np.inf, -np.inf]]).astype(np.float32)
    out = np.zeros((8, 64), np.float32)
    body = """{ float v = x[i];
        o[i] = exp(v); o[64 + i] = log(abs(v)); o[128 + i] = sqrt(abs(v)); o[192 + i] = max(v, 1.0);
        o[256 + i] = min(NAN, v); o[320 + i] = clamp(v, -2.0, 3.0); o[384 + i] = isnan(v) ? 1 : isinf(v) ? 2 : 0;
        o[448 + i] = fma(v, v, -1.0); }"""
    run(f"(device const float* x, device float* o, {I}) {body}", x, out, threads=64)
    exact = x.astype(np.float64)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(out[0], np.exp(exact).astype(np.float32), rtol=3e-7)
        np.testing.assert_allclose(out[1], np.log(np.abs(exact)), rtol=3e-7)
        np.testing.assert_allclose(out[2], np.sqrt(np.abs(exact)), rtol=1e-7)
        np.testing.assert_array_equal(out[3], np.fmax(x, 1))
        np.testing.assert_array_equal(out[4], x)
        np.testing.assert_array_equal(out[5], np.fmin(np.fmax(x, -2), 3))
        np.testing.assert_array_equal(out[6], np.where(np.isnan(x), 1, np.where(np.isinf(x), 2, 0)))
        np.testing.assert_allclose(out[7], exact * exact - 1, rtol=1e-7)


def test_simdgroup_functions() -> None:
    x = np.random.default_rng(2).integers(-1000, 1000, 64).astype(np.int32)
    lanes, groups = np.arange(32), x.reshape(2, 32)

    def all_lanes(values: Array) -> Array:
        return np.repeat(values.reshape(2, 1), 32, 1)

    expected = {
        "simd_sum(v)": all_lanes(groups.sum(1)),
        "simd_max(v)": all_lanes(groups.max(1)),
        "simd_min(v)": all_lanes(groups.min(1)),
        "simd_xor(v)": all_lanes(np.bitwise_xor.reduce(groups, 1)),
        "simd_or(v)": all_lanes(np.bitwise_or.reduce(groups, 1)),
        "simd_prefix_inclusive_sum(v)": groups.cumsum(1),
        "simd_prefix_exclusive_sum(v)": groups.cumsum(1) - groups,
        "simd_shuffle(v, ushort((i * 7) & 31))": groups[:, (lanes * 7) & 31],
        "simd_shuffle_xor(v, 5)": groups[:, lanes ^ 5],
        "simd_shuffle_up(v, 3)": groups[:, np.where(lanes >= 3, lanes - 3, lanes)],
        "simd_shuffle_down(v, 3)": groups[:, np.where(lanes < 29, lanes + 3, lanes)],
        "simd_broadcast(v, 9)": all_lanes(groups[:, 9]),
        "simd_any(v > 900)": all_lanes((groups > 900).any(1)),
        "simd_all(v > -2000)": all_lanes(np.ones(2)),
        "int(simd_ballot(v > 0) >> 31)": all_lanes(groups[:, 31] > 0),
    }
    out = np.zeros((len(expected), 2, 32), np.int32)
    lines = "".join(f"o[{64 * n} + i] = {call};" for n, call in enumerate(expected))
    run(f"(device const int* x, device int* o, {I}) {{ int v = x[i]; {lines} }}", x, out, threads=64)
    for call, actual in zip(expected, out, strict=True):
        np.testing.assert_array_equal(actual, expected[call], call)


def test_diverging_branches_reduce_over_their_own_lanes() -> None:
    text = f"""(device int* o, {I}) {{
        int r;
        if (i < 10) {{
          r = simd_sum(1);
        }} else {{
          r = simd_sum(100);
        }}
        o[i] = r + 10000 * simd_sum(1); }}"""
    expected = np.where(np.arange(32) < 10, 10, 2200) + 320000
    for schedule in SCHEDULES:
        out = np.zeros(32, np.int32)
        assert run(text, out, options=Options(schedule)).diverged == 2
        np.testing.assert_array_equal(out, expected)


def test_function_constants_and_templates() -> None:
    text = """
    constant uint flag [[function_constant(0)]];
    constant uint count [[function_constant(7)]];
    constant constexpr uint TWICE = 2;
    template <typename T, uint N> inline T scaled(T x) { return x * T(N * count); }
    kernel void k(device float* o, uint i [[thread_position_in_grid]]) { o[i] = scaled<float, TWICE>(5.0) + flag; }
    """
    for open_constants in (False, True):
        library = KernelLibrary.load(HEAD + text, open_constants=open_constants)
        for constants, expected in (({0: 1, 7: 4}, 41), ({7: 1}, 10)):
            out = np.zeros(32, np.float32)
            library.run("k", [out], Grid(), constants)
            assert (out == expected).all()


def test_positions() -> None:
    out = np.zeros((4, 48), np.uint32)
    text = """kernel void k(device uint* o, uint2 group [[threadgroup_position_in_grid]],
            ushort3 t [[thread_position_in_threadgroup]], uint3 n [[threads_per_threadgroup]],
            uint l [[thread_index_in_threadgroup]], uint2 g [[thread_position_in_grid]],
            uint2 size [[threads_per_grid]], uint s [[simdgroup_index_in_threadgroup]],
            uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
        o[g.y * size.x + g.x] = l + 100 * group.x + 1000 * group.y + 10000 * s + 100000 * simdgroups
            + (t.x + t.y * n.x == l && lane == l % 32 ? 0u : 1000000u); }"""
    load(text).run("k", [out], Grid((3, 2), (16, 2)))
    y, x = np.indices((4, 48))
    np.testing.assert_array_equal(out, y % 2 * 16 + x % 16 + 100 * (x // 16) + 1000 * (y // 2) + 100000)


def test_buffers_without_an_index_take_the_free_ones() -> None:
    text = f"(device float* a, device float* b [[buffer(0)]], {I}) {{ a[i] = 1; b[i] = 2; }}"
    first, second = np.zeros(32, np.float32), np.zeros(32, np.float32)
    run(text, first, second)
    assert (first[0], second[0]) == (2, 1)


def test_simdgroup_matrices() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((16, 24)).astype(np.float32) for _ in range(2))
    h = rng.standard_normal((8, 8)).astype(np.float16)
    out, transposed = np.zeros((16, 24), np.float32), np.zeros((8, 8), np.float32)
    run(
        """(device const float* a, device const float* b, device const half* h, device float* o, device float* t) {
        simdgroup_float8x8 A, B, D = make_filled_simdgroup_matrix<float, 8, 8>(2.0);
        simdgroup_half8x8 H;
        simdgroup_load(A, a, 24, ulong2(8, 3));
        simdgroup_load(B, b, 24, ulong2(1, 2), true);
        simdgroup_load(H, h);
        simdgroup_multiply_accumulate(D, A, B, D);
        simdgroup_multiply_accumulate(D, A, H, D);
        simdgroup_store(D, o, 24, ulong2(16, 8));
        simdgroup_store(A, t, 8, ulong2(0, 0), true); }""",
        a, b, h, out, transposed,
    )  # fmt: skip
    left, right = a[3:11, 8:16].astype(np.float64), b[2:10, 1:9].T.astype(np.float64)
    np.testing.assert_allclose(out[8:16, 16:24], 2 + left @ right + left @ h.astype(np.float64), atol=1e-5)
    np.testing.assert_array_equal(transposed, a[3:11, 8:16].T)


def test_subnormals_are_flushed_where_asked() -> None:
    for flushed in (False, True):
        out = np.full(32, 1e-40, np.float32)
        run(f"(device float* o, {I}) {{ o[i] = o[i] * 2.0; }}", out, options=Options(flush_subnormals=flushed))
        assert (out == 0).all() == flushed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel void k(texture2d<float> t) {}", "knows no parameter like 'texture2d < float > t'"),
        ("kernel void k(device int* o) { threadgroup int t = 1; }", "threadgroup memory cannot be initialised"),
        ("kernel void k(device int* o) { o[0] = 1;", "'{' is not closed"),
        ("kernel void k(device int* o) { o[0] = unknown(1); }", r"source.metal:3:\d+: error: "),
    ],
)
def test_text_that_cannot_be_translated_is_an_error(text: str, message: str) -> None:
    with pytest.raises(MslError, match=message):
        load(text).run("k", [np.zeros(32, np.int32)], Grid())


@needs_clang
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("threadgroup float t[4]; device float* p = t; p[i] = 1;", "cannot initialize"),
        ("constant float& c = o[i];", "address space"),
        ("double x = i;", "'double' is not available in MSL"),
    ],
)
def test_another_address_space_is_found(body: str, message: str) -> None:
    problems = address_spaces.check(f"{HEAD}kernel void k(device float* o, {I}) {{ {body} }}")
    assert any(message in problem for problem in problems), problems
    assert not address_spaces.check(f"{HEAD}kernel void k(device float* o, {I}) {{ o[i] = 1; }}")
