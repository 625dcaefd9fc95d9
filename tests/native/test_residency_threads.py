"""The expert cache under threads, with the compiler's sanitizers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.native.drivers import build_driver


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sanitizer = ["-O1", "-g1", f"-fsanitize={request.param}", "-fno-sanitize-recover=all"]
    return build_driver("residency_driver", tmp_path_factory.mktemp("driver"), sanitizer)


@pytest.mark.parametrize(
    ("policy", "direct_io", "prefetch"),
    [
        ("lru", "on", "off"),
        ("decayed-lfu", "off", "off"),
        ("lru", "off", "cross-layer"),
        ("decayed-lfu", "on", "recency"),
    ],
)
def test_threads_see_their_own_experts_and_nothing_races(
    driver: Path, tmp_path: Path, policy: str, direct_io: str, prefetch: str
) -> None:
    command = [driver, tmp_path / "experts.data", policy, direct_io, prefetch]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-4000:]
    *_, last, verdict = result.stdout.splitlines()
    assert verdict == "wrong: 0"
    statistics = json.loads(last)
    # The driver did what it is for: it bypassed, evicted and went in waves, and kept within the last budget.
    assert min(statistics[counter] for counter in ("hits", "bypassed", "evictions", "waves")) > 0
    assert statistics["resident"] <= statistics["capacity"]
    assert statistics["failed_loads"] == 0
    if prefetch != "off":
        assert min(statistics["prefetch"][counter] for counter in ("issued", "wasted")) > 0
        assert statistics["prefetch"]["timely"] + statistics["prefetch"]["late"] > 0
