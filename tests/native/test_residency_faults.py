"""The expert cache when the disk or the memory fails, and when its slots are overwritten."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.native.drivers import build_driver


def run(program: Path, folder: Path) -> tuple[dict[str, str], dict[str, object]]:
    """The driver's lines "name: what happened", and its JSON."""
    result = subprocess.run([program, folder / "experts.data"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    statistics = next(json.loads(line) for line in lines if line.startswith("{"))
    return dict(line.split(": ", 1) for line in lines if not line.startswith("{")), statistics


def test_every_fault_is_one_error_and_the_session_goes_on(tmp_path: Path) -> None:
    happened, statistics = run(build_driver("residency_faults_driver", tmp_path), tmp_path)
    where = f"expert {{}} of layer 1 could not be loaded: reading {tmp_path}/experts.data at offset "
    for name, expert in (("EIO", 1), ("early end", 4)):
        assert happened[name].startswith((where.format(expert), where.format(5)))
    assert happened["EIO"].endswith("Input/output error")
    assert happened["early end"].endswith("bytes early; restore the file")
    assert happened["no memory"].startswith("expert 0 of layer 1 could not be loaded: the system gives no ")
    assert happened["no memory"].endswith("(Cannot allocate memory): lower onnx_moe.cache_bytes")
    assert happened["short reads"] == happened["EINTR"] == "right"
    for name in ("no memory", "EIO", "short reads", "EINTR", "early end"):
        assert happened[f"after {name}"] == "right"
    assert happened["reading ahead"] == "right"
    assert statistics["failed_loads"] == 2  # expert 5 was there by then


def test_poisoned_slots(tmp_path: Path) -> None:
    core = ["core/activation.cpp", "core/expert_gemm.cpp", "core/expert_tiles.cpp", "core/fp4.cpp"]
    program = build_driver("residency_poison_driver", tmp_path, more_sources=[*core, "kernels/reference.cpp"])
    happened, statistics = run(program, tmp_path)
    assert happened == {"poison after release": "same", "poison under lease": "other"}
    assert min(int(str(statistics[counter])) for counter in ("evictions", "bypassed", "hits")) > 0
