"""Tiles (AMX) belong to a thread, and other libraries use them too: each finds the shapes that it left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnx_moe import _native

ROOT = Path(__file__).resolve().parents[2]

#: oneDNN loads its shapes once and multiplies by them again after the plugin's kernel has run on the same thread.
PROGRAM = """
import sys
import numpy as np
import torch
from onnx_moe import _native
sys.path.append(sys.argv[1])
from tests.native.decoding import products
from tests.native.test_kernel_decoding import multiply

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(1)
a, b = (torch.randn(256, 256, generator=generator).bfloat16() for _ in range(2))
first = a @ b
with _native.use_kernel("avx512_amx"):
    for product in products("nvfp4", 16, 40):
        np.testing.assert_array_equal(multiply(product, "rows"), product.expected)
        assert torch.equal(a @ b, first)
print("both computed")
"""


@pytest.mark.skipif("avx512_amx" not in _native.kernel_names(), reason="this machine's processor has no tiles")
def test_torch_and_the_plugin_share_a_thread(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(ROOT)]
    # Not from the repository, whose onnx_moe folder would hide the installed one.
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "both computed\n"), result.stderr
