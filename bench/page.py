"""The measured part of a page of docs/: everything behind a mark, which each run writes anew."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

_MARK = "<!-- measured -->\n"


def write_measured(page: Path, text: str) -> None:
    """Replaces what stands behind the mark in `page` by `text`; what stands in front of it is kept."""
    kept = page.read_text(encoding="utf-8").partition(_MARK)[0] if page.exists() else ""
    page.write_text(kept + _MARK + text, encoding="utf-8")


def processor() -> str:
    """The machine's processor by name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown: the first column to the left, numbers to the right."""
    lines = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"
