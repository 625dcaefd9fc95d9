"""The benchmark of models larger than memory runs and reports: on experts that take milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

_PATH = list(sys.path)
from bench.residency import __main__ as benchmark  # noqa: E402
from bench.residency.disk import bandwidth, find_parts  # noqa: E402
from bench.residency.memory import memory_limit, resident_bytes  # noqa: E402
from bench.residency.model import SHAPES, Shape, write_model  # noqa: E402

sys.path[:] = _PATH  # `bench` takes the repository off it, where the other tests are

#: Parts are whole pages, as those of real models, so that they can be read directly.
TINY = Shape(hidden=256, intermediate=512, experts=16, top_k=2)


def test_every_setting_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setattr(benchmark, "DISK_SECONDS", 0.05)
    app = typer.Typer()
    app.command()(benchmark.main)
    figures = tmp_path / "figures.json"
    arguments = ["--shape", "tiny", "--gib", f"{4 * 16 * TINY.expert_bytes / 2**30}", "--budgets", "40%,100%"]
    arguments += [
        "--tokens",
        "6",
        "--rounds",
        "2",
        "--warm-up",
        "12",
        "--folder",
        str(tmp_path),
        "--json",
        str(figures),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "4 layers x 16 experts of 0.21 MB, top-2" in result.output
    *pooled, mapped = json.loads(figures.read_text())
    assert [each["entries"]["cache_bytes"] for each in pooled] == ["40%", "40%", "100%", "100%"]
    for each in pooled:
        rounds = each["decoded"]["rounds"]
        assert all(of["counters"]["lookups"] == 6 * 4 * TINY.top_k for of in rounds)
        assert min(rate for of in rounds for rate in of["disk"]) > 0
        assert each["peak"] > each["decoded"]["own_bytes"] > 0
    assert mapped["decoded"]["statistics"]["mode"] == "mapped"


def test_the_disk_is_read_where_the_experts_are(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_model(path, TINY, 2)
    parts = find_parts(path, TINY)
    assert sum(parts.sizes) == TINY.expert_bytes
    assert parts.popularity.sum(-1) == pytest.approx([1, 1])
    data = path.with_suffix(".data").read_bytes()
    last = parts.offsets[-1] + [(TINY.experts - 1) * size for size in parts.sizes]
    assert last[-1] + parts.sizes[-1] == len(data)
    scales = data[last[1] : last[1] + parts.sizes[1]]
    assert scales == bytes([119]) * parts.sizes[1]
    assert bandwidth(path.with_suffix(".data"), parts, 0.05) > 1e6


def test_a_limit_of_memory_is_one(tmp_path: Path) -> None:
    script = "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid())); b'x' * (1 << 28)"
    try:
        with memory_limit(1 << 26) as group:
            result = subprocess.run([sys.executable, "-c", script, str(group)], check=False)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    assert result.returncode == -9  # killed


def test_resident_bytes_grow_with_what_is_touched() -> None:
    before = resident_bytes(os.getpid())
    touched = b"x" * (64 << 20)
    assert resident_bytes(os.getpid()) - before > 60 << 20
    assert len(touched) == 64 << 20
