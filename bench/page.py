"""The measured parts of a page of docs/, each behind a mark, which a run writes anew."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path


def write_measured(page: Path, text: str, part: str = "") -> None:
    """Replaces what stands in `page` between the mark of `part` and the next mark, or the end, by `text`."""
    mark = f"<!-- measured{': ' + part if part else ''} -->\n"
    before, found, behind = (page.read_text(encoding="utf-8") if page.exists() else "").partition(mark)
    others = re.search(r"<!-- measured", behind)
    kept = behind[others.start() :] if found and others else ""
    page.write_text(before + mark + text + kept, encoding="utf-8")


def processor() -> str:
    """The machine's processor by name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown: the first column to the left, numbers to the right."""
    lines = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"
