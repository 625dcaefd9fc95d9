"""The library loads and computes on processors that lack the instructions of its best kernels: nothing compiled for
those runs before a kernel is chosen. Emulated, since the machine that tests may have them all.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EMULATOR = "qemu-x86_64"

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which(EMULATOR) is None,
    reason=f"needs an x86-64 machine and {EMULATOR} (Debian: qemu-user)",
)


@pytest.mark.parametrize(("processor", "kernel"), [("Nehalem", "reference"), ("Haswell", "avx2")])
def test_the_best_kernel_that_an_older_processor_runs(processor: str, kernel: str) -> None:
    tests = Path(__file__).resolve().parents[1]
    command = [EMULATOR, "-cpu", processor, sys.executable, "-m", "native.older_processor"]
    result = subprocess.run(command, cwd=tests, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"exit status {result.returncode} (-4: an illegal instruction)\n{result.stderr}"
    chosen, error = result.stdout.split()
    assert chosen == kernel
    assert float(error) < 1e-6
