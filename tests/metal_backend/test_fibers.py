"""What the simulator notices when a kernel does something undefined."""

from __future__ import annotations

import numpy as np
import pytest

from metal.simulator.errors import KernelError, MslError
from metal.simulator.launch import Grid, Options

from .simulation import SCHEDULES, needs_compiler
from .test_language import I, load, run

pytestmark = needs_compiler

_FLOATS = f"(device float* o, {I})"


@pytest.mark.parametrize(
    ("body", "floats", "message"),
    [
        ("o[i + 1] = 1;", 32, r"thread \(31,0,0\).*byte 128 of buffer\(0\), which has 128 bytes.* at source.metal:3"),
        ("o[i] = 0;", 31, r"write past the end of buffer\(0\), which has 124 bytes"),
        ("o[int(i) - 2000] = 1;", 32, r"byte -8000 of buffer\(0\)"),
        ("threadgroup float t[32]; t[i + 1] = 1; o[i] = t[i];", 32, "byte 128 of threadgroup variable 't'"),
        ("threadgroup float t[31]; t[i] = 1; o[i] = 0;", 32, "write past the end of threadgroup variable 't'"),
        ("threadgroup float t[10000]; t[i] = 1; o[i] = t[i];", 32, "threadgroup memory: 40000 bytes, limit 32768"),
    ],
    ids=["past a buffer", "into its padding", "before it", "past a variable", "into its padding too", "limit"],
)
def test_bad_access_is_an_error(body: str, floats: int, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        run(f"{_FLOATS} {{ {body} }}", np.zeros(floats, np.float32))


def test_missing_buffer_is_an_error() -> None:
    text = f"(device float* o, device float* p, {I}) {{ o[i] = p[0]; }}"
    with pytest.raises(MslError, match=r"buffer 1 \(device float \* p\) is not given"):
        run(text, np.zeros(32, np.float32))
    with pytest.raises(KernelError, match="null"):
        load("kernel void k" + text).run("k", [np.zeros(32, np.float32), None], Grid())


def test_after_an_error_the_next_launch_is_well() -> None:
    with pytest.raises(KernelError):
        run(f"{_FLOATS} {{ o[i + 100000] = 1; }}", np.zeros(32, np.float32))
    out = np.zeros(32, np.float32)
    run(f"{_FLOATS} {{ o[i] = 1; }}", out)
    assert (out == 1).all()


def test_uninitialised_threadgroup_memory_is_nan() -> None:
    out = np.zeros(32, np.float32)
    body = "threadgroup float t[64]; t[i] = 1; threadgroup_barrier(mem_flags::mem_threadgroup);"
    run(f"{_FLOATS} {{ {body} o[i] = t[i + (i == 7 ? 32 : 0)]; }}", out)
    assert np.flatnonzero(np.isnan(out)).tolist() == [7]


def test_shuffle_from_a_lane_that_is_not_there_is_nan() -> None:
    out = np.zeros(32, np.float32)
    run(f"{_FLOATS} {{ if (i < 16) {{ o[i] = simd_shuffle(float(i), ushort(i == 3 ? 20 : 1)); }} }}", out)
    assert np.isnan(out[3])
    assert out[4] == 1


def test_a_function_that_some_lanes_do_not_reach_is_an_error_where_strict() -> None:
    text = f"{_FLOATS} {{ float s = 0; if (i < 10) {{ s = simd_sum(1.0); }} o[i] = s + simd_sum(2.0); }}"
    assert "simd_sum executed by lanes 000003ff only" in run(text, np.zeros(32, np.float32)).note
    with pytest.raises(KernelError, match="simd_sum executed by lanes 000003ff only, while lane 10 waits at simd_sum"):
        run(text, np.zeros(32, np.float32), options=Options(strict=True))


def test_barriers_that_not_all_threads_reach() -> None:
    split = (
        "if (i < 32) { threadgroup_barrier(mem_flags::mem_none); }\n else { threadgroup_barrier(mem_flags::mem_none); }"
    )
    with pytest.raises(KernelError, match="threadgroup_barrier divergence"):
        run(f"{_FLOATS} {{ {split} o[i] = 1; }}", np.zeros(64, np.float32), threads=64)
    early = f"{_FLOATS} {{ if (i > 40) return; threadgroup_barrier(mem_flags::mem_none); o[i] = 1; }}"
    assert "have returned" in run(early, np.zeros(64, np.float32), threads=64).note
    with pytest.raises(KernelError, match="have returned"):
        run(early, np.zeros(64, np.float32), threads=64, options=Options(strict=True))


_REVERSED = "{ threadgroup float t[64]; t[i] = i; %s o[i] = t[63 - i]; }"
_BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@pytest.mark.parametrize(("barrier", "same"), [("", False), (_BARRIER, True)], ids=["missing", "there"])
def test_order_matters_where_a_barrier_is_missing(barrier: str, same: bool) -> None:
    results = set()
    for schedule in SCHEDULES:
        out = np.zeros(64, np.float32)
        run(_FLOATS + _REVERSED % barrier, out, threads=64, options=Options(schedule))
        results.add(out.tobytes())
    assert (len(results) == 1) == same


def test_a_race_names_its_lines() -> None:
    library = load(f"kernel void k{_FLOATS}" + _REVERSED.replace("%s", "\n"))
    with pytest.raises(KernelError, match=r"data race: .*source.metal:[34] / .*source.metal:[34]") as error:
        library.check_races("k", [np.zeros(64, np.float32)], Grid((1,), (64,)))
    assert "write at source.metal:3" in str(error.value)
    assert "read at source.metal:4" in str(error.value)


def test_a_barrier_orders_what_it_is_asked_to() -> None:
    for flags, raced in (("mem_threadgroup", False), ("mem_none", True)):
        library = load(f"kernel void k{_FLOATS}" + _REVERSED % f"threadgroup_barrier(mem_flags::{flags});")
        out = np.zeros(64, np.float32)
        if raced:
            with pytest.raises(KernelError, match="data race"):
                library.check_races("k", [out], Grid((1,), (64,)))
        else:
            library.check_races("k", [out], Grid((1,), (64,)))
            np.testing.assert_array_equal(out, np.arange(64)[::-1])
