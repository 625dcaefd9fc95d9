"""The host runtime and the kernels inside ONNX Runtime, on a fake Metal device: `onnx_moe.device` = metal."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conformance.cases import GEMM_CASES, GemmCase, RouterCase, case_id
from conformance.check import check_values
from conformance.data import Array, draw_gemm_inputs, draw_router_inputs
from conformance.implementations import ModelImplementation, Outputs, run_poisoned, session_options
from conformance.oracle import expected_gemm
from conformance.test_gemm import allowed_frobenius

import onnx_moe

ROOT = Path(__file__).resolve().parents[2]
HEADERS = Path(os.environ.get("ONNX_MOE_METAL_CPP", ROOT / "build" / "metal_cpp"))
CLANG = next((name for name in ("clang++-19", "clang++") if shutil.which(name)), None)

SESSION_CASES = [
    *[case for case in GEMM_CASES if np.prod(case.tokens) * case.slots * case.rows * case.columns < 1e6][::12],
    GemmCase(tokens=(40,), rows=68, blocks=3, gated=True, activation="silu", num_experts=3, combine=True, bias="float"),
    GemmCase(tokens=(40,), rows=35, blocks=3, num_experts=3, format="nvfp4", dtype="bfloat16"),
]


class SimulatedPlugin(ModelImplementation):
    """The plugin with the Metal backend, on the fake device."""

    name = "metal"

    def __init__(self, library: Path) -> None:
        self.library = library

    def options(self, device: str = "metal") -> onnxruntime.SessionOptions:
        options = session_options(1)
        options.register_custom_ops_library(str(self.library))
        options.add_session_config_entry("onnx_moe.device", device)
        return options

    def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Outputs) -> Outputs:
        return run_poisoned(model, self.options(), feeds, outputs)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlugin:
    if given := os.environ.get("ONNX_MOE_METAL_PLUGIN"):  # built with ONNX_MOE_METAL on a Mac
        return SimulatedPlugin(Path(given))
    if platform.machine() != "x86_64" or CLANG is None or shutil.which("ninja") is None:
        pytest.skip("the fake Metal device needs x86-64, clang (Debian: clang-19) and ninja")
    if not (HEADERS / "Metal" / "Metal.hpp").exists():
        pytest.skip(f"no metal-cpp headers in {HEADERS}: python -m tools.fetch_metal_cpp build/metal_cpp")
    # Where `python -m metal…` finds the package; PYTHONPATH would hide the installed onnx_moe from every other test.
    os.environ["ONNX_MOE_SIMULATOR_PYTHON"] = f"cd {shlex.quote(str(ROOT))} && {shlex.quote(sys.executable)}"
    build = ROOT / "build" / "metal_plugin"
    options = ["-DONNX_MOE_METAL_SIMULATOR=ON", f"-DONNX_MOE_METAL_CPP={HEADERS}", f"-DCMAKE_CXX_COMPILER={CLANG}"]
    # The CPU kernels are held to warnings by the compilers that build releases.
    configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options, "-DONNX_MOE_WARNINGS_AS_ERRORS=OFF"]
    for command in (configure, ["ninja", "-C", build]):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return SimulatedPlugin(build / "ops" / "libonnx_moe.so")


@pytest.mark.parametrize("case", SESSION_CASES, ids=case_id)
def test_values(plugin: SimulatedPlugin, case: GemmCase) -> None:
    inputs = draw_gemm_inputs(case)
    check_values(plugin.gemm(case, inputs)["y"], expected_gemm(case, inputs), case.dtype, allowed_frobenius(case))


def test_runs_leave_no_metal_objects_behind(plugin: SimulatedPlugin) -> None:
    library = ctypes.CDLL(str(plugin.library))
    if not hasattr(library, "onnx_moe_simulator_live_objects"):
        pytest.skip("only the fake device counts its objects")
    count = library.onnx_moe_simulator_live_objects
    count.restype = ctypes.c_uint64
    case = GemmCase(tokens=(40,), num_experts=3, combine=True)
    inputs = draw_gemm_inputs(case)
    plugin.gemm(case, inputs)
    before = count()
    assert before > 0, "nothing ran on the fake device"
    plugin.gemm(case, inputs)
    assert count() == before


def test_concurrent_runs_give_the_same_bytes(plugin: SimulatedPlugin) -> None:
    case = GemmCase(tokens=(5,), rows=34)
    inputs = draw_gemm_inputs(case)
    expected = plugin.gemm(case, inputs)["y"].tobytes()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: plugin.gemm(case, inputs)["y"].tobytes(), range(8)))
    assert set(results) == {expected}


def test_expert_id_out_of_range_names_node_and_row(plugin: SimulatedPlugin) -> None:
    inputs = draw_gemm_inputs(GemmCase())
    ids = inputs.expert_ids.copy()
    ids[3, 1] = 8
    with pytest.raises(Exception, match=r"node '.*': expert_ids holds 8 in row 3, slot 1"):
        plugin.gemm(GemmCase(), replace(inputs, expert_ids=ids))


def test_router_says_that_the_cpu_computes_it(plugin: SimulatedPlugin, capfd: pytest.CaptureFixture[str]) -> None:
    case = RouterCase()
    plugin.router(case, draw_router_inputs(case))
    assert capfd.readouterr().err.count("runs on the CPU: this operator has no Metal form yet") == 1


def test_interleaved_weights_stay_on_the_cpu(plugin: SimulatedPlugin, capfd: pytest.CaptureFixture[str]) -> None:
    case = GemmCase(rows=48, weight_layout="interleaved")
    inputs = draw_gemm_inputs(case)
    check_values(plugin.gemm(case, inputs)["y"], expected_gemm(case, inputs), case.dtype, allowed_frobenius(case))
    assert "weight_layout interleaved is for its kernels alone" in capfd.readouterr().err


def test_unknown_device_is_an_error(plugin: SimulatedPlugin) -> None:
    class Unknown(SimulatedPlugin):
        def options(self, device: str = "gpu") -> onnxruntime.SessionOptions:
            return super().options(device)

    with pytest.raises(Exception, match=r"onnx_moe\.device is 'gpu': use auto, metal or cpu"):
        Unknown(plugin.library).gemm(GemmCase(), draw_gemm_inputs(GemmCase()))


def test_a_library_without_metal_says_so() -> None:
    class Plain(ModelImplementation):
        name = "plain"

        def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Outputs) -> Outputs:
            options = session_options(1)
            onnx_moe.register(options)
            options.add_session_config_entry("onnx_moe.device", "metal")
            return run_poisoned(model, options, feeds, outputs)

    with pytest.raises(Exception, match="this library was built without Metal: use auto or cpu"):
        Plain().gemm(GemmCase(), draw_gemm_inputs(GemmCase()))
