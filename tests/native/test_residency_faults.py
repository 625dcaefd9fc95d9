"""The expert cache when the disk or the memory fails, and when its slots are overwritten."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.native.drivers import build_driver, build_objects

CORE = ["core/activation.cpp", "core/expert_gemm.cpp", "core/expert_tiles.cpp", "core/fp4.cpp", "kernels/reference.cpp"]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build_objects(tmp_path_factory.mktemp("objects"), CORE)


def run(program: Path, folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The driver's lines "name: what happened", and its JSON objects."""
    result = subprocess.run([program, folder / "experts.data"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    statistics = [json.loads(line) for line in lines if line.startswith("{")]
    return dict(line.split(": ", 1) for line in lines if not line.startswith("{")), statistics


def test_every_fault_is_one_error_and_the_session_goes_on(objects: list[Path], tmp_path: Path) -> None:
    happened, (statistics, ahead, early) = run(
        build_driver("residency_faults_driver", tmp_path, objects=objects), tmp_path
    )
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
    # Slots of slow reads that turned out useless came back, again and again.
    assert min(ahead["prefetch"]["wasted"], ahead["prefetch"]["issued"]) > 100
    assert ahead["prefetch"]["late"] > 0
    assert statistics["failed_loads"] == 2  # expert 5 was there by then
    assert happened["the call before it"] == happened["a call that ended early"] == "right"
    # Two experts of each layer are held; what was read for a call that never got a slot came back.
    assert (early["capacity"], early["misses"]) == (6, 6 + 2 + 2)
    assert early["prefetch"]["issued"] == early["prefetch"]["wasted"] + early["prefetch"]["cancelled"] == 2


def test_poisoned_slots(objects: list[Path], tmp_path: Path) -> None:
    program = build_driver("residency_poison_driver", tmp_path, objects=objects)
    happened, (statistics,) = run(program, tmp_path)
    assert happened == {
        "poison after release": "same",
        "poison under lease": "other",
        "a slot that was given back": "poison",
    }
    assert min(statistics[counter] for counter in ("evictions", "bypassed", "hits")) > 0
