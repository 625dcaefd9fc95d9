"""From the second run on, the plugin takes memory from ONNX Runtime's arena alone and starts no thread."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("allocations.cpp")

PROGRAM = """
import ctypes, sys
import numpy as np, onnxruntime, torch
import onnx_moe
from onnx_moe.nn import SparseMoE

path, fused, level = sys.argv[1], sys.argv[2] == "fused", int(sys.argv[3])
torch.manual_seed(0)
layer = SparseMoE(256, 128, 8, 2)
onnx_moe.export(
    layer, (torch.randn(3, 256),), path, format="nvfp4", accuracy_level=level, dynamic_shapes=({0: "tokens"},),
    functions=False,
)
if fused:
    import onnx_ir
    model = onnx_ir.load(path)
    assert onnx_moe.fuse(model) == 1
    onnx_ir.save(model, path, external_data="fused.data")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnx_moe.InferenceSession(path, options)
(name,) = (value.name for value in session.get_inputs())
counters = ctypes.CDLL(None)
for counter in (counters.counted_allocations, counters.counted_threads):
    counter.restype = ctypes.c_long
inputs = [np.random.rand(tokens, 256).astype(np.float32) for tokens in (1, 70)]
assert counters.start_counting() == 1, "the library is loaded"
onnx_moe.InferenceSession(path)
assert counters.counted_allocations() > 0, "making kernels takes memory, and the counter sees it"
for x in inputs * 3:
    session.run(None, {name: x})
before = counters.counted_allocations(), counters.counted_threads()
for x in inputs * 5:
    session.run(None, {name: x})
after = counters.counted_allocations(), counters.counted_threads()
print(after[0] - before[0], after[1] - before[1])
"""


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("compiles a library that is loaded before everything else: takes Linux and a C++ compiler")
    library = tmp_path_factory.mktemp("counters") / "counters.so"
    command = [compiler, "-std=c++17", "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    return library


@pytest.mark.parametrize("form", ["nodes", "fused"])
@pytest.mark.parametrize("level", [0, 4])
def test_runs_allocate_nothing(counters: Path, tmp_path: Path, form: str, level: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "layer.onnx"), form, str(level)]
    environment = {**os.environ, "LD_PRELOAD": str(counters)}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    allocations, threads = map(int, result.stdout.split()[-2:])
    assert (allocations, threads) == (0, 0)
