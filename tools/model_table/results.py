"""The recorded results: one file, results.json, that every run adds to and docs/models.md is written from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.model_table.comparison import Comparison

RESULTS = Path(__file__).with_name("results.json")

_PACKAGES = ("transformers", "torch", "onnxruntime")


def installed_versions() -> dict[str, str]:
    """What a result depends on, as installed."""
    return {package: version(package).partition("+")[0] for package in _PACKAGES}


@dataclass(frozen=True)
class Result:
    """What a run of one architecture gave: a comparison, or the reason why there is none."""

    versions: dict[str, str]
    seconds: float
    comparison: Comparison | None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it exported and every difference is within the tolerance."""
        return self.comparison is not None and self.comparison.passed


def load_results() -> dict[str, Result]:
    """Recorded results by model type; none where nothing was recorded."""
    if not RESULTS.exists():
        return {}
    recorded: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {name: _from_json(entry) for name, entry in recorded.items()}


def save_results(results: dict[str, Result]) -> None:
    """Writes all results at once, so that an interrupted run leaves a whole file."""
    entries = {name: asdict(results[name]) for name in sorted(results)}
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, RESULTS)


def _from_json(entry: dict[str, Any]) -> Result:
    comparison = entry.pop("comparison")
    return Result(**entry, comparison=None if comparison is None else Comparison(**comparison))
