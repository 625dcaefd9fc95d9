"""The benchmark runs and reports: on a block that takes milliseconds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.implementations import PluginKind, plugin, random_weights
from bench.shapes import Shape, draw_calls, every_expert

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
from pathlib import Path
import bench.measure
import bench.shapes
from bench.shapes import Shape
bench.measure._LONGEST_CALL = float(sys.argv[3])
bench.shapes.SHAPES["tiny"] = Shape("tiny", 4, 2, 256, 128)
from bench.moe import main
main(shapes="tiny", tokens="1,9", threads="1", peers=sys.argv[2], output=Path(sys.argv[1]))
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="measures the machine with a C++ program")
def test_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "page.md"
    output.write_text("kept\n<!-- measured -->\nstale\n")
    command = [sys.executable, "-c", PROGRAM, str(output), "all", "60"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    text = output.read_text()
    assert text.startswith("kept\n<!-- measured -->\n## Measured on")
    assert "stale" not in text
    for row in (
        "mxfp4 interleaved, level 4",
        "QMoE int4/128, level 4",
        "Torch bfloat16",
        "share of the limit: mxfp4, level 0",
    ):
        assert f"| {row} |" in text
    assert "**mxfp4, level 0 vs QMoE mxfp4**" in text
    assert output.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.skipif(shutil.which("c++") is None, reason="measures the machine with a C++ program")
def test_a_peer_that_takes_too_long_is_left_out(tmp_path: Path) -> None:
    output = tmp_path / "page.md"
    command = [sys.executable, "-c", PROGRAM, str(output), "torch", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    text = output.read_text()
    assert "Left out: tiny: Torch bfloat16 from 9 tokens on: a call of 1 took 0.0 s." in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["Torch bfloat16"].endswith("|  |")
    assert not rows["mxfp4, level 0"].endswith("|  |")


def test_every_expert_is_read() -> None:
    for experts, top_k in ((8, 2), (7, 3), (4, 4)):
        shape = Shape("tiny", experts, top_k, 64, 32)
        call = every_expert(shape)
        assert set(call.expert_ids.flat) == set(range(experts))
        chosen = np.argsort(-call.keys, axis=1)[:, :top_k]
        np.testing.assert_array_equal(np.sort(chosen), np.sort(call.expert_ids))


def test_fused_block_computes_what_two_nodes_do(tmp_path: Path) -> None:
    shape = Shape("tiny", 8, 2, 64, 32)
    weights = random_weights(shape, "mxfp4")
    two, one = (plugin(shape, weights, PluginKind(0, fused=fused), 1, tmp_path) for fused in (False, True))
    assert one.name == "mxfp4 fused, level 0"
    (call,) = draw_calls(shape, 5, 1)
    of_one, of_two = (np.array(each.run(each.feed(call))) for each in (one, two))
    np.testing.assert_allclose(of_one, of_two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--peers", "qmoe", "'qmoe' is unknown: use all, or some of qmoe-fp4"),
        ("--device", "gpu", "'gpu' is unknown: use cpu or metal"),
        pytest.param("--device", "metal", "no GPU to measure", marks=pytest.mark.skipif("sys.platform == 'darwin'")),
    ],
)
def test_a_wrong_option_is_an_error(option: str, value: str, message: str) -> None:
    command = [sys.executable, "-m", "bench.moe", option, value]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
