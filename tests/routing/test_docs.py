"""The examples and commands of docs/routing.md and docs/routing-report.md run as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnx_moe.routing import simulate_routing_for_model

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "routing.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))

EXPECTED = {
    "recording": r"0 160 tokens, entropy [01]\.\d+ hot: \[.*\]",
    "profiler": r"load balancing: \[1\.\d+ +1\.\d+ *\]",
    "planning": r"'belady': [01]\.\d+",
}

#: Files that the commands of a page leave.
WRITTEN = {
    "routing.md": ("olmoe-1b-7b-simulated.html", "trace-routing.npz", "counters.txt", "plan.html"),
    "routing-report.md": ("guess.html", "guess.json", "plan.html"),
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


@pytest.mark.parametrize("page", WRITTEN)
def test_commands(page: str, tmp_path: Path) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    (commands,) = re.findall(r"<!-- test: shell -->\n```sh\n(.*?)```", text, re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for name in WRITTEN[page]:
        assert (tmp_path / name).stat().st_size > 0


def described() -> dict[str, str]:
    """The description of each key of the JSON document."""
    block = PAGE.split("## The profile as a JSON document")[1].split("```")[1]
    parts = re.split(r"^([a-z_]+) {2,}", block, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def keys(value: Any) -> Iterator[str]:
    """Names of keys at any depth; what stands for numbers is none."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if not key.isdigit():
                yield key
            yield from keys(entry)
    elif isinstance(value, list):
        for entry in value[:2]:
            yield from keys(entry)


def test_the_json_document_has_the_keys_that_are_described() -> None:
    document = simulate_routing_for_model("olmoe-1b-7b", 40).generate_report()
    assert set(described()) == set(document)
    for section, text in described().items():
        missing = {key for key in keys(document[section]) if not re.search(rf"\b{key}\b", text)}
        assert missing <= {"prefill", "decode", "all"}, section
