"""The examples of docs/routing.md run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))

EXPECTED = {
    "recording": r"0 160 tokens, entropy [01]\.\d+ hot: \[.*\]",
    "profiler": r"load balancing: \[1\.\d+ +1\.\d+ *\]",
    "planning": r"'belady': [01]\.\d+",
}


def test_every_example_is_known() -> None:
    assert set(EXAMPLES) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLES[name], encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert re.search(EXPECTED[name], result.stdout), result.stdout


def test_the_json_document_has_the_keys_that_are_described() -> None:
    from onnx_moe.routing import simulate_routing_for_model

    described = set(re.findall(r"^([a-z_]+) {2,}\S", PAGE.split("## The profile as a JSON document")[1], re.MULTILINE))
    assert described == set(simulate_routing_for_model("olmoe-1b-7b", 10).generate_report())
