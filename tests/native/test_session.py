"""Registration, sessions, threads, memory, and the graphs that nodes may stand in."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnx_moe
from onnx_moe import _native
from onnx_moe.errors import LibraryError, OnnxMoeError
from onnx_moe.operators import DOMAIN, VERSION

Array = NDArray[Any]

HIDDEN, EXPERTS, TOP_K = 64, 8, 3


def block_model(element_type: int = TensorProto.FLOAT, columns: int = HIDDEN) -> onnx.ModelProto:
    """Float input → Cast → router → product with combine → Cast → float output; no shapes inside the graph."""
    random = np.random.default_rng(0)
    gate = random.standard_normal((EXPERTS, columns)).astype(np.float32)
    codes = random.integers(0, 256, (EXPERTS, columns, columns // 2)).astype(np.uint8)
    scales = random.integers(120, 127, (EXPERTS, columns, columns // 32)).astype(np.uint8)
    nodes = [
        helper.make_node("Cast", ["input"], ["x"], to=element_type),
        helper.make_node("MoERouter", ["x", "gate"], ["ids", "w"], domain=DOMAIN, name="router", top_k=TOP_K),
        helper.make_node(
            "MoEExpertGemmFP4", ["x", "ids", "codes", "scales", "", "", "w"], ["y"], domain=DOMAIN, name="product"
        ),
        helper.make_node("Cast", ["y"], ["output"], to=TensorProto.FLOAT),
    ]
    arrays = {"gate": gate, "codes": codes, "scales": scales}
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", "tokens", columns])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rows(tokens: int, columns: int = HIDDEN, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((2, tokens, columns)).astype(np.float32)


def run(session: onnxruntime.InferenceSession, x: Array) -> Array:
    result: Array = session.run(None, {"input": x})[0]
    return result


def test_registering_twice_is_registering_once(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    onnx_moe.register(options)
    onnx_moe.register(options)
    path = tmp_path / "block.onnx"
    onnx.save(block_model(), path)
    from_path = onnx_moe.InferenceSession(path, options)
    from_bytes = onnx_moe.InferenceSession(block_model().SerializeToString())
    plain_options = onnxruntime.SessionOptions()
    plain_options.register_custom_ops_library(str(onnx_moe.library_path()))
    plain = onnxruntime.InferenceSession(str(path), plain_options, providers=["CPUExecutionProvider"])
    x = rows(5)
    expected = run(plain, x)
    np.testing.assert_array_equal(run(from_path, x), expected)
    np.testing.assert_array_equal(run(from_bytes, x), expected)


def test_a_library_that_is_absent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "LIBRARY_NAME", "absent.so")
    with pytest.raises(LibraryError, match=r"absent\.so is not in .*install the package"):
        onnx_moe.register(onnxruntime.SessionOptions())


def test_only_the_entry_point_and_the_c_api_are_exported() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not on the PATH")
    output = subprocess.run(
        ["nm", "-D", "--defined-only", str(onnx_moe.library_path())], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in output.splitlines()}
    header = (Path(__file__).resolve().parents[2] / "ops" / "include" / "onnx_moe.h").read_text()
    assert names == {"RegisterCustomOps", *re.findall(r"^ONNX_MOE_API .*?(onnx_moe_\w+)\(", header, re.MULTILINE)}


@pytest.mark.parametrize("element_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_types_are_inferred_through_the_nodes(element_type: int) -> None:
    x = rows(6)
    expected = run(onnx_moe.InferenceSession(block_model().SerializeToString()), x)
    actual = run(onnx_moe.InferenceSession(block_model(element_type).SerializeToString()), x)
    # Input and output are each rounded once.
    tolerance = {TensorProto.FLOAT16: 2e-3, TensorProto.BFLOAT16: 1.6e-2}[element_type]
    assert 1e-5 < np.linalg.norm(actual - expected) / np.linalg.norm(expected) < tolerance


def test_symbolic_dimensions_go_through() -> None:
    session = onnx_moe.InferenceSession(block_model().SerializeToString())
    assert session.get_outputs()[0].shape == ["batch", "tokens", HIDDEN]


@pytest.mark.parametrize("tokens", [1, 9, 150])
def test_threads_do_not_change_a_byte(tokens: int) -> None:
    x = rows(tokens, 256)
    results = []
    for threads in (1, 2, 4):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        results.append(run(onnx_moe.InferenceSession(block_model(columns=256).SerializeToString(), options), x))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_concurrent_runs_of_one_session() -> None:
    session = onnx_moe.InferenceSession(block_model(columns=256).SerializeToString())
    inputs = [rows(tokens, 256, seed) for seed, tokens in enumerate((1, 3, 40, 2, 17, 1))]
    expected = [run(session, x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for actual, reference in zip(pool.map(lambda x: run(session, x), inputs), expected, strict=True):
                np.testing.assert_array_equal(actual, reference)


def save_with_external_data(model: onnx.ModelProto, path: Path, offset: int) -> None:
    """Every initializer goes `offset` bytes behind a multiple of 65536 in a file beside the model's."""
    data = b""
    for tensor in model.graph.initializer:
        data += bytes(-len(data) % 65536 + offset)
        content = numpy_helper.to_array(tensor).tobytes()
        entries = {"location": "weights.data", "offset": len(data), "length": len(content)}
        data += content
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
    (path.parent / "weights.data").write_bytes(data)
    onnx.save(model, path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("offset", [0, 3])
def test_weights_are_read_from_the_mapping(tmp_path: Path, offset: int) -> None:
    """In a process of its own: the allocator of this one has memory to spare, which would hide a copy."""
    script = tmp_path / "probe.py"
    model = block_model(columns=2048)
    expected = run(onnx_moe.InferenceSession(model.SerializeToString()), np.ones((1, 1, 2048), np.float32))
    save_with_external_data(model, tmp_path / "large.onnx", offset)
    weight_bytes = EXPERTS * 2048 * 1024
    script.write_text(
        "import numpy as np, onnx_moe, onnxruntime, sys\n"
        "def anonymous():\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) * 1024\n"
        "onnx_moe.register(onnxruntime.SessionOptions())\n"
        "x = np.ones((1, 1, 2048), np.float32)\n"
        "before = anonymous()\n"
        "session = onnx_moe.InferenceSession(sys.argv[1])\n"
        "result = session.run(None, {'input': x})[0]\n"
        "print(anonymous() - before)\n"
        "np.save('result.npy', result)\n"
    )
    command = [sys.executable, str(script), "large.onnx"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert int(output) < weight_bytes / 3
    np.testing.assert_array_equal(np.load(tmp_path / "result.npy"), expected)


def _subprocess_kernel(value: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import onnx_moe, onnxruntime\n"
        "onnx_moe.register(onnxruntime.SessionOptions())\n"
        "from onnx_moe import _native; print(_native.current_kernel())"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,  # not the repository, whose source folder would be imported instead of the installed package
        env={**os.environ, "ONNX_MOE_KERNEL": value},
        capture_output=True,
        text=True,
        check=False,
    )


def test_environment_chooses_the_kernel(tmp_path: Path) -> None:
    assert _subprocess_kernel("reference", tmp_path).stdout.strip() == "reference"
    result = _subprocess_kernel("sse9", tmp_path)
    assert result.returncode != 0
    assert "ONNX_MOE_KERNEL: kernel 'sse9' is not one that this machine can run: use one of auto" in result.stderr


def test_an_unknown_kernel_is_an_error_and_changes_nothing() -> None:
    before = _native.current_kernel()
    with pytest.raises(OnnxMoeError, match=r"kernel 'fast'.*use one of auto, .*reference"):
        _native.select_kernel("fast")
    assert _native.current_kernel() == before


def test_an_old_runtime_gets_a_status_that_says_so() -> None:
    """RegisterCustomOps against a made-up runtime that knows version 1 of the API only."""
    messages: list[str] = []
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, message: messages.append(message.decode()) or 1
    )
    table = (ctypes.c_void_p * 102)(ctypes.cast(create_status, ctypes.c_void_p).value)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version == 1 else None
    )
    version = ctypes.create_string_buffer(b"1.18.0")
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(version))
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(function, ctypes.c_void_p).value for function in (get_api, get_version)))
    register = ctypes.CDLL(str(onnx_moe.library_path())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    register.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    assert register(None, ctypes.addressof(base)) == 1
    assert messages == ["onnx-moe needs ONNX Runtime 1.24.4 or newer, this is 1.18.0: pip install -U onnxruntime"]
