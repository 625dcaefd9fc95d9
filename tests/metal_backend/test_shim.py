"""Language and library features, each through a small MSL kernel."""

from __future__ import annotations

import numpy as np
import pytest

from metal.simulator import runner

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
SCHEDULES = ["forward", "reverse", "random"]


def run(src, bufs, tg=1, tpt=32, name="k", **kw):
    return runner.compile(HEAD + src).run(name, bufs, tg, tpt, **kw)


def test_half_rounding_is_ieee():
    x = np.concatenate(
        [
            np.arange(1 << 16, dtype=np.uint32) << 16,
            np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32),
        ]
    ).view(np.float32)
    out = np.zeros(x.size, np.uint16)
    run(
        "kernel void k(const device float* x, device half* o, uint i [[thread_position_in_grid]]) { o[i] = half(x[i]); }",
        [x, out],
        x.size // 256,
        256,
    )
    with np.errstate(over="ignore"):
        ref = x.astype(np.float16)
    same = (out == ref.view(np.uint16)) | (np.isnan(ref) & np.isnan(out.view(np.float16)))
    assert same.all()


def test_bfloat_rounding_and_arithmetic():
    r = np.random.default_rng(1)
    a, b = (r.integers(0x3000, 0x5000, 4096).astype(np.uint16) for _ in range(2))
    out = np.zeros(a.size, np.uint16)
    run(
        "kernel void k(const device bfloat* a, const device bfloat* b, device bfloat* o, uint i [[thread_position_in_grid]]) { bfloat t = a[i] * b[i]; t += a[i]; o[i] = t; }",
        [a, b, out],
        a.size // 256,
        256,
    )

    def f(h):
        return (h.astype(np.uint32) << 16).view(np.float32)

    def bf(x):
        u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
        return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)

    assert (out == bf(f(bf(f(a) * f(b))) + f(a))).all()


def test_vectors_and_swizzles():
    out = np.zeros(40, np.float32)
    run(
        """kernel void k(device float* o [[buffer(0)]]) {
        float4 a = float4(1, 2, 3, 4);
        float2 b = a.zw;  a.xy = b;  a.zw = a.wz;            // (3 4 4 3)
        for (int i = 0; i < 4; i++) o[i] = a[i];
        float3 c = float3(b, 7);  c.xz += 1.0;               // (4 4 8)
        o[4] = c.x; o[5] = c.y; o[6] = c.z;
        a.wx = a.xw;                                         // swap: x=3 w=3 -> from (3,3)
        uint4 u = uint4(1, 2, 3, 4) << 4; u &= 0x30u; u |= uint4(1);
        o[7] = u.x; o[8] = u.y; o[9] = u.z; o[10] = u.w;
        bool4 m = u > 20u; o[11] = select(float4(0), float4(5, 6, 7, 8), m).y; o[12] = any(m); o[13] = all(m);
        half4 h = half4(a) * 0.5h; float4 g = static_cast<float4>(h); o[14] = g.y;
        o[15] = dot(float3(1, 2, 3), float3(4, 5, 6)); o[16] = cross(float3(1, 0, 0), float3(0, 1, 0)).z;
        float4 n = 1.0 / float4(2, 4, 8, 16); o[17] = n.w; o[18] = as_type<float2>(as_type<ulong>(n.xy)).y;
        o[19] = fma(float2(2), 3.0f, float2(1)).y; o[20] = clamp(int2(-5, 9), 0, 4).y; o[21] = max3(1, 5, 3); o[22] = (float4){9, 8, 7, 6}.w;
        o[23] = sizeof(float3); o[24] = sizeof(packed_float3); o[25] = alignof(half4); o[26] = popcount(0xF0F0u); o[27] = clz(1u); o[28] = mulhi(0x80000000u, 6u);
        o[29] = rotate(0x80000001u, 4u); o[30] = subsat(3u, 5u); o[31] = min(ushort(3), ushort(2)); o[32] = abs(-3); o[33] = sign(-2.0); o[34] = extract_bits(0xABCDu, 4, 8);
        o[35] = mix(1.0, 3.0, 0.25); o[36] = saturate(1.5); o[37] = reverse_bits(1u) == 0x80000000u; o[38] = ctz(8); o[39] = 1.0 / 3;   // float division
    }""",
        [out],
        1,
        1,
    )
    exp = [
        3,
        4,
        4,
        3,
        5 - 1,
        4,
        8,
        17,
        33,
        49,
        1,
        6,
        1,
        0,
        2,
        32,
        1,
        1 / 16,
        0.25,
        7,
        4,
        5,
        6,
        16,
        12,
        8,
        8,
        31,
        3,
        24,
        0,
        2,
        3,
        -1,
        0xBC,
        1.5,
        1,
        1,
        3,
        np.float32(1) / np.float32(3),
    ]
    assert out.tolist() == [float(np.float32(x)) for x in exp]


def test_simd_functions():
    x = np.random.default_rng(2).integers(-1000, 1000, 64).astype(np.int32)
    n = 20
    out = np.zeros((n, 64), np.int32)
    run(
        """kernel void k(const device int* x, device int* o, uint i [[thread_position_in_grid]]) { int v = x[i]; int q = 0;
        #define W(e) o[64 * q++ + i] = (e);
        W(simd_sum(v)) W(simd_max(v)) W(simd_min(v)) W(simd_xor(v)) W(simd_prefix_inclusive_sum(v)) W(simd_prefix_exclusive_sum(v))
        W(simd_shuffle(v, ushort((i * 7) & 31))) W(simd_shuffle_xor(v, 5)) W(simd_shuffle_up(v, 3)) W(simd_shuffle_down(v, 3)) W(simd_broadcast(v, 9))
        W(simd_shuffle_rotate_down(v, 4)) W(simd_shuffle_and_fill_up(v, -1, 2)) W(quad_sum(v)) W(quad_broadcast(v, 2)) W(quad_shuffle_xor(v, 1))
        W(simd_any(v > 900)) W(simd_is_first()) W(int(ulong(simd_ballot(v > 0)))) W(simd_broadcast_first(v)) }""",
        [x, out],
        1,
        64,
    )
    s = x.reshape(2, 32)
    i = np.arange(32)

    def b(a):
        return np.repeat(np.asarray(a).reshape(2, 1), 32, 1)

    q = s.reshape(2, 8, 4)
    ref = [
        b(s.sum(1)),
        b(s.max(1)),
        b(s.min(1)),
        b(np.bitwise_xor.reduce(s, 1)),
        s.cumsum(1),
        s.cumsum(1) - s,
        s[:, (i * 7) & 31],
        s[:, i ^ 5],
        s[:, np.where(i >= 3, i - 3, i)],
        s[:, np.where(i < 29, i + 3, i)],
        b(s[:, 9]),
        s[:, (i + 4) & 31],
        np.where(i >= 2, s[:, i - 2], -1),
        np.repeat(q.sum(2), 4, 1),
        np.repeat(q[:, :, 2], 4, 1),
        s[:, i ^ 1],
        b((s > 900).any(1)),
        np.repeat((i == 0)[None], 2, 0),
        b(
            ((s > 0) * (1 << i.astype(np.uint64))).sum(1).astype(np.uint32).view(np.int32)
            if False
            else ((s > 0).astype(np.uint64) << i.astype(np.uint64)).sum(1).astype(np.uint32).astype(np.int64)
        )
        .astype(np.uint32)
        .view(np.int32)
        .reshape(2, 32),
        b(s[:, 0]),
    ]
    for j, r in enumerate(ref):
        assert (out[j].reshape(2, 32) == r).all(), j


def test_divergent_simdgroup_operations():
    """Legal structured divergence: each branch reduces over its own lanes."""
    out = np.zeros(32, np.int32)
    src = """kernel void k(device int* o, uint i [[thread_position_in_grid]]) {
        int r;
        if (i < 10) { r = simd_sum(1); }
        else { r = simd_sum(100); }
        if (i & 1) r += simd_is_first() ? 1000 : 0;
        o[i] = r + 10000 * simd_sum(1); }"""
    for s in SCHEDULES:
        st = run(src, [out], schedule=s)
        ref = np.where(np.arange(32) < 10, 10, 2200) + np.where(np.arange(32) == 1, 1000, 0) + 320000
        assert (out == ref).all()
        assert st["diverged"] == 3
    with pytest.raises(runner.KernelError, match="executed by lanes"):
        run(src, [out], strict=True)


def test_function_constants_and_templates():
    src = """
    constant bool flag [[function_constant(0)]];
    constant int count [[function_constant(7)]];
    constant int n = is_function_constant_defined(count) ? count : 3;
    template <typename T, int N> [[kernel]] void f(device T* o, uint i [[thread_position_in_grid]]) { o[i] = T(N * n + (flag ? 1 : 0)); }
    #define inst(name, T, N) template [[host_name(name)]] [[kernel]] decltype(f<T, N>) f<T, N>;
    inst("f_" "float", float, 2)
    template [[host_name("f_int")]] kernel void f<int, 5>(device int* o, uint i [[thread_position_in_grid]]);
    """
    lib = runner.compile(HEAD + src)
    assert set(lib.kernel_names()) == {"f_float", "f_int"}
    o = np.zeros(32, np.float32)
    lib.run("f_float", [o], 1, 32)
    assert (o == 6).all()
    o = np.zeros(32, np.int32)
    lib.run("f_int", [o], 1, 32, constants={"flag": True, 7: 4})
    assert (o == 21).all()


def test_address_space_overloads_collapse():
    o = np.zeros(32, np.float32)
    run(
        """template <typename T> struct box { T v;
          box(T x) thread : v(x) {}  box(T x) threadgroup : v(x) {}
          operator T() const thread { return v; }  operator T() const device { return v; } };
        float get(const device float* p) { return *p; }  float get(const threadgroup float* p) { return *p; }
        kernel void k(device float* o, uint i [[thread_position_in_grid]]) {
          threadgroup float t[32]; t[i] = i; threadgroup_barrier(mem_flags::mem_threadgroup);
          o[i] = 1; box<float> b(get(&t[31 - i])); o[i] += b + get(o + i); }""",
        [o],
    )
    assert (o == 2 + 31 - np.arange(32)).all()


def test_threadgroup_arguments_and_positions():
    o = np.zeros((4, 48), np.uint32)
    run(
        """kernel void k(device uint* o, threadgroup uint* s [[threadgroup(0)]], threadgroup ushort* h [[threadgroup(1)]],
            uint2 tg [[threadgroup_position_in_grid]], ushort3 t [[thread_position_in_threadgroup]], uint3 n [[threads_per_threadgroup]],
            uint l [[thread_index_in_threadgroup]], uint2 g [[thread_position_in_grid]], uint2 gs [[threads_per_grid]], uint sg [[simdgroup_index_in_threadgroup]], uint ns [[simdgroups_per_threadgroup]]) {
        s[l] = l; h[l] = ushort(2 * l); threadgroup_barrier(mem_flags::mem_threadgroup);
        uint r = n.x * n.y - 1 - l;
        o[g.y * gs.x + g.x] = s[r] + h[r] * 100 + sg * 1000000 + ns * 10000000 + (t.x + t.y * n.x == l ? 0u : 100000000u); }""",
        [o],
        (3, 2),
        (16, 2),
        threadgroup_mem={0: 128, 1: 64},
    )
    for y in range(4):
        for x in range(48):
            r = 31 - ((y & 1) * 16 + x % 16)
            assert o[y, x] == r + 200 * r + 10000000


def test_dispatch_threads_nonuniform():
    o = np.zeros(70, np.uint32)
    run(
        "kernel void k(device uint* o, uint g [[thread_position_in_grid]], uint n [[threads_per_threadgroup]]) { o[g] = n; }",
        [o],
        None,
        32,
        threads=70,
    )
    assert o.tolist() == [32] * 64 + [6] * 6


def test_atomics():
    h, m = np.zeros(8, np.uint32), np.array([0xFFFFFFFF, 0], np.uint32)
    f = np.zeros(1, np.float32)
    d = np.zeros(1, np.uint64)
    src = """kernel void k(device atomic_uint* h, device atomic_uint* m, device atomic_float* f, device atomic_ulong* d, uint i [[thread_position_in_grid]]) {
        threadgroup atomic_uint t[8];
        if (i % 64 < 8) atomic_store_explicit(&t[i % 64], 0u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        atomic_fetch_add_explicit(&t[i & 7], 1u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (i % 64 < 8) atomic_fetch_add_explicit(&h[i % 64], atomic_load_explicit(&t[i % 64], memory_order_relaxed), memory_order_relaxed);
        atomic_fetch_min_explicit(&m[0], i + 5, memory_order_relaxed); atomic_fetch_max_explicit(&m[1], i, memory_order_relaxed);
        atomic_fetch_add_explicit(f, 0.5f, memory_order_relaxed); atomic_max_explicit(d, ulong(i) << 33, memory_order_relaxed); }"""
    run(src, [h, m, f, d], 4, 64, workers=2)
    assert h.tolist() == [32] * 8
    assert m.tolist() == [5, 255]
    assert f[0] == 128
    assert d[0] == 255 << 33


def test_simdgroup_matrix():
    r = np.random.default_rng(3)
    a, b, _c = (r.standard_normal((16, 24)).astype(np.float32) for _ in range(3))
    h = r.standard_normal((8, 8)).astype(np.float16)
    o, t = np.zeros((16, 24), np.float32), np.zeros((8, 8), np.float32)
    run(
        """kernel void k(const device float* a, const device float* b, const device half* h, device float* o, device float* t, uint l [[thread_index_in_simdgroup]]) {
        simdgroup_float8x8 A, B, D = make_filled_simdgroup_matrix<float, 8, 8>(2.0); simdgroup_half8x8 H;
        simdgroup_load(A, a, 24, ulong2(8, 3)); simdgroup_load(B, b, 24, ulong2(1, 2), true); simdgroup_load(H, h);
        simdgroup_multiply_accumulate(D, A, B, D); simdgroup_multiply_accumulate(D, A, H, D);
        simdgroup_store(D, o, 24, ulong2(16, 8));
        simdgroup_float8x8 I = simdgroup_float8x8(1.0f); simdgroup_multiply(I, A, I); simdgroup_store(I, t, 8, 0, true); }""",
        [a, b, h, o, t],
    )
    A, B = a[3:11, 8:16].astype(float), b[2:10, 1:9].T.astype(float)
    assert np.abs(o[8:16, 16:24] - (2 + A @ B + A @ h.astype(float))).max() < 1e-5
    assert (t == a[3:11, 8:16].T).all()


# ------------------------------------------------------------- diagnostics --
def test_device_overrun_is_reported():
    for _off, _n in ((0, 33), (1, 32)):
        o = np.zeros(32, np.float32)
        with pytest.raises(runner.KernelError, match=r"thread \(31,0,0\).*byte 128 of buffer\(0\).*128 bytes"):
            run("kernel void k(device float* o, uint i [[thread_position_in_grid]]) { o[i + 1] = 1; }", [o])


def test_threadgroup_overrun_is_reported():
    with pytest.raises(runner.KernelError, match="byte 128 of threadgroup variable 'tile', which has 128 bytes"):
        run(
            "kernel void k(device float* o, uint i [[thread_position_in_grid]]) { threadgroup float tile[32]; tile[i + 1] = 1; o[i] = tile[i]; }",
            [np.zeros(32, np.float32)],
        )


def test_small_overruns_into_padding_are_reported():
    with pytest.raises(runner.KernelError, match="write past the end of threadgroup variable 'tile'"):
        run(
            "kernel void k(device float* o, uint i [[thread_position_in_grid]]) { threadgroup float tile[31]; tile[i] = 1; o[i] = 0; }",
            [np.zeros(32, np.float32)],
        )
    with pytest.raises(runner.KernelError, match=r"write past the end of buffer\(0\), which has 124 bytes"):
        run(
            "kernel void k(device float* o, uint i [[thread_position_in_grid]]) { o[i] = 0; }",
            [np.zeros(31, np.float32)],
        )


def test_null_buffer_and_assert_and_limit():
    with pytest.raises(runner.KernelError, match="null"):
        run(
            "kernel void k(device float* o, device float* p, uint i [[thread_position_in_grid]]) { o[i] = p[0]; }",
            [np.zeros(32, np.float32), None],
        )
    with pytest.raises(runner.KernelError, match=r"assert\(i < 31\) failed in thread \(31,0,0\)"):
        run(
            "kernel void k(device float* o, uint i [[thread_position_in_grid]]) { assert(i < 31); o[i] = 1; }",
            [np.zeros(32, np.float32)],
        )
    with pytest.raises(runner.KernelError, match="threadgroup memory: 40000 bytes, limit 32768"):
        run(
            "kernel void k(device float* o, uint i [[thread_position_in_grid]]) { threadgroup float t[10000]; t[i] = 1; o[i] = t[i]; }",
            [np.zeros(32, np.float32)],
        )


def test_timeout_and_denormals():
    with pytest.raises(runner.KernelError, match=r"timeout in thread \(0,0,0\)"):
        run(
            "kernel void k(device uint* o, uint i [[thread_position_in_grid]]) { volatile device uint* p = o; while (p[i] == 0) {} }",
            [np.zeros(32, np.uint32)],
            timeout=1,
        )
    for ftz in (False, True):
        o = np.full(32, 1e-40, np.float32)
        run("kernel void k(device float* o, uint i [[thread_position_in_grid]]) { o[i] = o[i] * 2.0; }", [o], ftz=ftz)
        assert (o == 0).all() == ftz


def test_barrier_divergence():
    o = np.zeros(64, np.float32)
    with pytest.raises(runner.KernelError, match="barrier divergence"):
        run(
            """kernel void k(device float* o, uint i [[thread_position_in_grid]]) {
            if (i < 32) { threadgroup_barrier(mem_flags::mem_none); }
            else {
              threadgroup_barrier(mem_flags::mem_none); }
            o[i] = 1; }""",
            [o],
            1,
            64,
        )
    st = run(
        "kernel void k(device float* o, uint i [[thread_position_in_grid]]) { if (i > 40) return; threadgroup_barrier(mem_flags::mem_none); o[i] = 1; }",
        [o],
        1,
        64,
    )
    assert "have returned" in st["note"]


def test_uninitialised_threadgroup_memory_is_nan():
    o = np.zeros(32, np.float32)
    run(
        "kernel void k(device float* o, uint i [[thread_position_in_grid]]) { threadgroup float t[64]; t[i] = 1; threadgroup_barrier(mem_flags::mem_threadgroup); o[i] = t[i + (i == 7 ? 32 : 0)]; }",
        [o],
    )
    assert np.isnan(o[7])
    assert np.isnan(o).sum() == 1


def test_missing_barrier_shows_up_under_other_schedules():
    src = """kernel void k(device float* o, uint i [[thread_position_in_grid]]) {
        threadgroup float t[64]; t[i] = i; %s o[i] = t[63 - i]; }"""
    results = {}
    for barrier in ("", "threadgroup_barrier(mem_flags::mem_threadgroup);"):
        results[barrier] = set()
        for s in SCHEDULES:
            o = np.zeros(64, np.float32)
            run(src % barrier, [o], 1, 64, schedule=s)
            results[barrier].add(o.tobytes())
    assert len(results[""]) > 1
    assert len(results["threadgroup_barrier(mem_flags::mem_threadgroup);"]) == 1


def test_shuffle_from_inactive_lane_is_poison():
    o = np.zeros(32, np.float32)
    run(
        "kernel void k(device float* o, uint i [[thread_position_in_grid]]) { if (i < 16) { o[i] = simd_shuffle(float(i), ushort(i == 3 ? 20 : 1)); } }",
        [o],
    )
    assert np.isnan(o[3])
    assert o[4] == 1
