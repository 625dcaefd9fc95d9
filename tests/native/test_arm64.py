"""The NEON kernels, cross-compiled and run under emulation: its products, and its decoding of every code and scale."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_moe import _native

from .decoding import BLOCKS, ROW_BLOCKS, Product, products
from .guarded import TYPES, Case, gemm, gemm_arrays, gemm_cases

Array = NDArray[Any]

ROOT = Path(__file__).resolve().parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSTEM = Path("/usr/aarch64-linux-gnu")
BUFFERS = ("x", "expert_ids", "weights", "scales", "global_scale", "bias", "expert_weights", "y")

#: Of design: relative Frobenius error against float64, which the reference kernel stands for.
TOLERANCES = {"float": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
LEVEL_TOLERANCES = {0: 0.0, 2: 1e-3, 4: 2e-2}  # twice 1e-2: gated products carry the error of both factors

KERNELS = ("neon", "neon_dotprod", "neon_i8mm")

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in (COMPILER, EMULATOR, "cmake", "ninja")),
    reason=f"needs {COMPILER}, {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user), cmake and ninja",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and its driver, built for arm64."""
    folder = tmp_path_factory.mktemp("arm64")
    toolchain = folder / "arm64.cmake"
    toolchain.write_text(
        "set(CMAKE_SYSTEM_NAME Linux)\n"
        "set(CMAKE_SYSTEM_PROCESSOR aarch64)\n"
        f"set(CMAKE_CXX_COMPILER {COMPILER})\n"
        'set(CMAKE_CXX_FLAGS_RELEASE "-O1")\n'
    )
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    for command in (
        configure,
        ["cmake", "--build", str(folder)],
        [
            COMPILER,
            "-std=c++17",
            "-O1",
            f"-I{ROOT / 'ops' / 'include'}",
            str(ROOT / "tests" / "native" / "arm64_driver.cpp"),
            f"-L{folder / 'ops'}",
            "-lonnx_moe",
            f"-Wl,-rpath,{folder / 'ops'}",
            "-o",
            str(folder / "driver"),
        ],
    ):
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return folder / "driver"


def _pack(case: Case, arrays: dict[str, Array], activation: bool) -> bytes:
    assert tuple(arrays) == BUFFERS, "the driver reads them in this order"
    numbers = (
        _native.ELEMENT_TYPES[case.dtype],
        case.tokens,
        case.slots,
        case.experts,
        case.rows,
        case.columns,
        case.per_slot,
        _native.FORMAT_NUMBERS[case.format],
        case.block,
        case.gated,
        case.interleaved,
        activation,
        case.level,
        _native.WEIGHT_LAYOUTS[case.layout],
    )
    packed = np.array(numbers, np.int32).tobytes()
    for name, array in arrays.items():
        content = b"" if name == "expert_weights" and not case.combine else array.tobytes()
        packed += np.int64(len(content)).tobytes() + content
    return packed


def _pack_product(product: Product) -> bytes:
    (tokens, columns), rows = product.x.shape, len(product.codes)
    case = Case(
        format=product.format,
        block=BLOCKS[product.format],
        dtype="float",
        tokens=tokens,
        rows=rows,
        columns=columns,
        gated=False,
        interleaved=False,
        combine=False,
        per_slot=False,
        slots=1,
        experts=1,
    )
    arrays: dict[str, Array] = {
        "x": product.x,
        "expert_ids": np.zeros(tokens, np.int32),
        "weights": product.weights,
        "scales": product.scales,
        "global_scale": np.ones(1, np.float32),
        "bias": np.zeros(rows, np.float32),
        "expert_weights": np.zeros(0, np.float32),
        "y": np.full((tokens, rows), 12345, np.float32),
    }
    return _pack(case, arrays, activation=False)


def _run(driver: Path, kernel: str, folder: Path, cases: list[bytes]) -> bytes:
    (folder / "cases").write_bytes(b"".join(cases))
    command = [EMULATOR, "-L", str(SYSTEM), str(driver), str(folder / "cases"), str(folder / "output")]
    environment = {**os.environ, "ONNX_MOE_KERNEL": kernel}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"kernel {kernel}"
    return (folder / "output").read_bytes()


def _floats(content: bytes, dtype: str) -> Array:
    values: Array = np.frombuffer(content, TYPES[dtype])
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_neon_kernels(driver: Path, kernel: str, tmp_path: Path) -> None:
    cases = gemm_cases()[::5]
    output = _run(driver, kernel, tmp_path, [_pack(case, gemm_arrays(case), activation=True) for case in cases])
    with _native.use_kernel("reference"):
        for case in cases:
            expected = gemm(case, None)
            actual, output = output[: len(expected)], output[len(expected) :]
            ours, reference = _floats(actual, case.dtype), _floats(expected, case.dtype)
            tolerance = max(TOLERANCES[case.dtype], LEVEL_TOLERANCES[case.level])
            assert np.linalg.norm(ours - reference) <= tolerance * np.linalg.norm(reference), case
    assert not output


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("format", BLOCKS)
def test_every_scale_and_code(driver: Path, kernel: str, tmp_path: Path, format: str) -> None:
    cases = [
        product
        for row_blocks, rows_of_x in itertools.product(ROW_BLOCKS, (1, 16))
        for product in products(format, row_blocks, rows_of_x)
    ]
    output = np.frombuffer(_run(driver, kernel, tmp_path, list(map(_pack_product, cases))), np.float32)
    np.testing.assert_array_equal(output, np.concatenate([case.expected.reshape(-1) for case in cases]))
