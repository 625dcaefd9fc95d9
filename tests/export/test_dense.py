"""MatMulNBits for the dense products: codes decoded here by hand, what stays as it is, what is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_moe.errors import ExportError
from onnx_moe.export.dense import check_dense, quantize_dense

RANDOM = np.random.default_rng(1)


def dense_model(dtype: type = np.float32) -> ir.Model:
    """y = x·A, z = y·Bᵀ with B transposed by a node, and again z2 = z·Bᵀ, w = z[:40]·C with K=40."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((64, 64)).astype(dtype) for _ in range(2))
    c = random.standard_normal((40, 8)).astype(dtype)
    kind = TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["y"]),
        helper.make_node("Transpose", ["B"], ["Bt"], perm=[1, 0]),
        helper.make_node("MatMul", ["y", "Bt"], ["z"]),
        helper.make_node("MatMul", ["z", "Bt"], ["z2"]),
        helper.make_node("Slice", ["z2", "zero", "forty", "last"], ["part"]),
        helper.make_node("MatMul", ["part", "C"], ["w"]),
    ]
    constants = {"zero": [0], "forty": [40], "last": [2]}
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", kind, ["b", "s", 64])],
        [helper.make_tensor_value_info(name, kind, ["b", "s", size]) for name, size in (("z", 64), ("w", 8))],
        [numpy_helper.from_array(value, name) for name, value in (("A", a), ("B", b), ("C", c))]
        + [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def decode(codes: NDArray[np.uint8], scales: NDArray[np.floating], bits: int) -> NDArray[np.float64]:
    """The matrix [K, N] of codes [N, blocks, bytes] and scales [N, blocks]: low nibble first, zero in the middle."""
    numbers = codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    values = (numbers.astype(np.float64) - 2 ** (bits - 1)) * scales.astype(np.float64)[..., None]
    return values.reshape(len(codes), -1).T


def run(model: ir.Model, folder: Path, x: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    ir.save(model, folder / "model.onnx")
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("dense", "bits", "step"), [("int4", 4, 8), ("int8", 8, 128)])
def test_values(dense: str, bits: int, step: int, dtype: type, tmp_path: Path) -> None:
    original, model = dense_model(dtype), dense_model(dtype)
    assert len(quantize_dense(model, dense)) == 3
    assert [node.op_type for node in model.graph] == ["MatMulNBits"] * 3 + ["Slice", "MatMul"]
    initializers = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert set(initializers) >= {"C", f"A.int{bits}", f"B.transposed.int{bits}"}
    assert not {"A", "B"} & set(initializers)
    matrices = {}
    for name, source in (("A", "A"), ("B.transposed", "B")):
        decoded = decode(initializers[f"{name}.int{bits}"], initializers[f"{name}.int{bits}_scales"], bits)
        wanted = model_matrix(original, source)
        # The largest value of a block is 2^(bits - 1) steps from zero; on the other side there is one step less.
        largest = np.abs(wanted).reshape(2, 32, -1).max(axis=1).repeat(32, axis=0)
        assert np.all(np.abs(decoded - wanted) <= 1.001 * largest / step + 1e-3 * largest * (dtype is np.float16))
        matrices[source] = decoded
    x = RANDOM.standard_normal((2, 3, 64)).astype(dtype)
    expected = x.astype(np.float64) @ matrices["A"] @ matrices["B"]
    actual = run(model, tmp_path, x)[0]
    assert actual.dtype == dtype
    tolerance = 1e-6 if dtype is np.float32 else 2e-3
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def model_matrix(model: ir.Model, name: str) -> NDArray[np.float64]:
    """A, or B transposed, as [K, N]."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    matrix: NDArray[np.float64] = tensor.numpy().astype(np.float64)
    return matrix.T if name == "B" else matrix


def test_float_changes_nothing(tmp_path: Path) -> None:
    model = dense_model()
    assert not quantize_dense(model, "float")
    assert "com.microsoft" not in model.graph.opset_imports


def test_accuracy_level_is_passed_on() -> None:
    model = dense_model()
    quantize_dense(model, "int8", accuracy_level=4)
    assert {node.attributes["accuracy_level"].as_int() for node in model.graph if node.op_type == "MatMulNBits"} == {4}


def test_misuse() -> None:
    with pytest.raises(ExportError, match="dense='int3' is none of float, int8, int4"):
        check_dense("int3")


def test_logging_is_left_alone(tmp_path: Path) -> None:
    """ONNX Runtime's quantiser sets up the root logger: a program that exports would print its notes ever after."""
    program = "import logging, onnx_moe.export; root = logging.getLogger(); print(root.handlers, root.level)"
    # Not from the repository, whose onnx_moe folder would hide the installed one.
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", str(logging.WARNING)]
