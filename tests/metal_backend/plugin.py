"""The plugin built with the Metal backend: for the fake device here, or for a Mac's (ONNX_MOE_METAL_PLUGIN)."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import test_fusion
from conformance.cases import GemmCase
from conformance.check import check_values
from conformance.data import Array, draw_gemm_inputs
from conformance.implementations import ModelImplementation, Outputs, run_poisoned, session_options
from conformance.oracle import expected_gemm
from conformance.test_gemm import allowed_frobenius

import onnx_moe
from metal.simulator import compilers

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "metal_plugin"
HEADERS = Path(os.environ.get("ONNX_MOE_METAL_CPP", ROOT / "build" / "metal_cpp"))
#: A call that onnx_moe.device = auto gives to the GPU.
LARGE = GemmCase(tokens=(64,), slots=2, rows=512, blocks=8, num_experts=4)


@dataclass
class Plugin(ModelImplementation):
    """Runs models of one node through an InferenceSession with onnx_moe.device = `device`."""

    library: Path
    device: str = "metal"
    name: str = "metal"

    def on(self, device: str) -> Plugin:
        return Plugin(self.library, device)

    def options(self) -> onnxruntime.SessionOptions:
        options = session_options(1)
        options.register_custom_ops_library(str(self.library))
        options.add_session_config_entry("onnx_moe.device", self.device)
        return options

    def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Outputs) -> Outputs:
        return run_poisoned(model, self.options(), feeds, outputs)

    # The fake device's own functions.

    @property
    def is_simulated(self) -> bool:
        return hasattr(ctypes.CDLL(str(self.library)), "onnx_moe_simulator_live_objects")

    def _function(self, name: str, result: Any = ctypes.c_uint64, *arguments: Any) -> Callable[..., int]:
        function = getattr(ctypes.CDLL(str(self.library)), f"onnx_moe_simulator_{name}")
        function.restype, function.argtypes = result, arguments
        return function  # type: ignore[no-any-return]

    def live_objects(self) -> int:
        return self._function("live_objects")()

    def command_buffers(self) -> int:
        return self._function("command_buffers")()

    def dispatches(self) -> int:
        return self._function("dispatches")()

    def allocated(self) -> int:
        return self._function("allocated")()

    def residency_sets(self) -> int:
        return self._function("residency_sets")()

    def resident(self) -> int:
        return self._function("resident", ctypes.c_int64)()

    def devices_asked_for(self) -> int:
        return self._function("devices_asked_for")()

    def fail_after(self, command_buffers: int) -> None:
        self._function("fail_after", None, ctypes.c_int64)(command_buffers)

    def lose_device(self, lost: bool) -> None:
        self._function("lose_device", None, ctypes.c_bool)(lost)

    # What depends on the device that a process finds first.

    def facts_in_new_process(self) -> dict[str, int]:
        """What a session of one node makes and sends to the device."""
        return {name: int(value) for name, value in json.loads(self._in_new_process().stdout).items()}

    def log_in_new_process(self, what: str = "node") -> str:
        """The log of two sessions of one node, or of one of three nodes ("block"), that run right."""
        result = self._in_new_process(what)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stderr

    def error_in_new_process(self) -> str:
        """The error of a run of one node."""
        result = self._in_new_process()
        assert result.returncode == 1, "the run was to fail: " + result.stdout + result.stderr
        return result.stderr

    def _in_new_process(self, what: str = "node") -> subprocess.CompletedProcess[str]:
        # `metal` lies in the repository, behind what is installed: in front, it would hide onnx_moe.
        program = (
            f"import runpy, sys; sys.path.append({str(ROOT)!r}); "
            "runpy.run_module('metal_backend.plugin', run_name='__main__')"
        )
        command = [sys.executable, "-c", program, str(self.library), self.device, what]
        folder = Path(__file__).resolve().parents[1]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def cmake_options() -> list[str]:
    """How CMake builds the plugin for the fake device."""
    return [
        "-GNinja",
        "-DONNX_MOE_METAL_SIMULATOR=ON",
        f"-DONNX_MOE_METAL_CPP={HEADERS}",
        f"-DCMAKE_CXX_COMPILER={compilers.CLANGXX}",
        # The CPU kernels are optimised where they are tested; here that would take a minute.
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O0",
    ]


def build_plugin() -> Plugin:
    """The plugin for the device that is there: on a Mac the installed one, or the one that ONNX_MOE_METAL_PLUGIN
    names; elsewhere one for the fake device, which this builds, or skips with the reason why it cannot.
    """
    given = os.environ.get("ONNX_MOE_METAL_PLUGIN")
    if given is None and sys.platform == "darwin":
        given = str(onnx_moe.library_path())
    if given is not None:
        if not Path(given).is_file():  # what `$(python …)` left when it failed: not a reason to skip
            pytest.fail(f"ONNX_MOE_METAL_PLUGIN is {given!r}, which is no file: give a library's path, or unset it")
        return Plugin(Path(given))
    if platform.machine() != "x86_64" or compilers.CLANGXX is None or shutil.which("ninja") is None:
        pytest.skip("the fake Metal device needs x86-64, clang 14 or newer and ninja")
    if not (HEADERS / "Metal" / "Metal.hpp").exists():
        pytest.skip(f"no metal-cpp headers in {HEADERS}: python -m tools.fetch_metal_cpp build/metal_cpp")
    # Where `python -m metal…` finds the package; PYTHONPATH would hide the installed onnx_moe from every other test.
    os.environ.setdefault("ONNX_MOE_SIMULATOR_PYTHON", f"cd {shlex.quote(str(ROOT))} && {shlex.quote(sys.executable)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # another test process may be building it
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["cmake", "-S", ROOT, "-B", BUILD, *cmake_options()], ["ninja", "-C", BUILD]):
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
    return Plugin(BUILD / "ops" / "libonnx_moe.so")


def run_node_twice(plugin: Plugin) -> dict[str, int]:
    """What the process made of devices and residency sets, and what the second session sent to the device: the first
    has the device test itself."""
    inputs = draw_gemm_inputs(LARGE)
    expected = expected_gemm(LARGE, inputs)
    check_values(plugin.gemm(LARGE, inputs)["y"], expected, LARGE.dtype, allowed_frobenius(LARGE))
    before = plugin.command_buffers()
    plugin.gemm(LARGE, inputs)
    return {
        "devices_asked_for": plugin.devices_asked_for(),
        "residency_sets": plugin.residency_sets(),
        "command_buffers": plugin.command_buffers() - before,
    }


def run_block(plugin: Plugin) -> dict[str, int]:
    """A session of three nodes."""
    y = np.empty((3, test_fusion.OUTPUT), np.float32)
    plugin.evaluate(test_fusion.block_model(), {"x": np.ones((3, test_fusion.HIDDEN), np.float32)}, {"y": y})
    assert np.isfinite(y).all()
    return {}


def main(library: Path, device: str, what: str) -> None:
    """Runs a session on a device of this process; prints facts."""
    try:
        facts = (run_block if what == "block" else run_node_twice)(Plugin(library, device))
    except Exception as error:  # ONNX Runtime raises types of its own
        sys.exit(str(error))
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
