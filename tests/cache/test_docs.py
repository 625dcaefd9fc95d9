"""The examples of docs/cache.md run, one after the other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cache.md"


def test_examples_run(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    (tmp_path / "example.py").write_text("\n".join(examples), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "'lookups': 2, 'hit_rate': 0.5" in result.stdout
    assert "'total_predictions': 36" in result.stdout
