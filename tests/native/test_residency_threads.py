"""The expert cache under threads, with the compiler's sanitizers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "tests/native/residency_driver.cpp", ROOT / "ops/core/fp4.cpp"]
NOT_UNDER_TEST = {"cache_simulator.cpp", "residency_registry.cpp"}


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++) is installed")
    program = tmp_path_factory.mktemp("driver") / "residency_driver"
    engine = [path for path in sorted((ROOT / "ops/experts").glob("*.cpp")) if path.name not in NOT_UNDER_TEST]
    command = [compiler, "-std=c++17", "-O1", "-g", f"-fsanitize={request.param}", "-fno-sanitize-recover=all"]
    subprocess.run(
        [*command, f"-I{ROOT / 'ops'}", "-o", program, *SOURCES, *engine, "-lpthread"], check=True, timeout=300
    )
    return program


@pytest.mark.parametrize("direct_io", ["on", "off"])
@pytest.mark.parametrize("policy", ["lru", "decayed-lfu"])
def test_threads_see_their_own_experts_and_nothing_races(
    driver: Path, tmp_path: Path, policy: str, direct_io: str
) -> None:
    command = [driver, tmp_path / "experts.data", policy, direct_io]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-4000:]
    *_, last, verdict = result.stdout.splitlines()
    assert verdict == "wrong: 0"
    statistics = json.loads(last)
    # The driver did what it is for: it bypassed, evicted and went in waves, and kept within the last budget.
    assert min(statistics[counter] for counter in ("hits", "bypassed", "evictions", "waves")) > 0
    assert statistics["resident"] <= statistics["capacity"]
    assert statistics["failed_loads"] == 0
