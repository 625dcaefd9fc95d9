"""Numbers as the report's sentences write them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNITS = ("B", "kB", "MB", "GB", "TB")


def percent(share: float) -> str:
    """A share as percent: 4.2 %, 42 %; what is not all or nothing does not become 100 % or 0 %."""
    value = 100 * share
    if 0 < value < 0.001:
        return "< 0.001 %"
    if 0 < value < 0.095:
        return f"{value:.1g} %"
    if 99.95 <= value < 100:
        return "> 99.9 %"
    return f"{value:.1f} %" if 0 < value < 9.95 or 99.5 <= value < 100 else f"{value:.0f} %"


def byte_size(count: float) -> str:
    """Bytes in decimal units with two or three digits: 2.65 MB, 48.9 GB."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    digits = 0 if unit == 0 or count >= 99.5 else 1 if count >= 9.95 else 2
    return f"{count:.{digits}f} {_UNITS[unit]}"


def counted(count: int, noun: str) -> str:
    """1 expert, 2,000 experts."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def unbroken(text: str) -> str:
    """`text` with no line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|[kMGT]?B\b)", "\u00a0", text)


def mean(values: Iterable[float | None]) -> float:
    """The mean of the values that are known; NaN without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
