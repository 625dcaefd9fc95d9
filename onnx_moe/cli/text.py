"""How the commands write numbers."""

from __future__ import annotations

import re

from onnx_moe.errors import InvalidAttributeError


def megabytes(count: int) -> str:
    """Bytes as people read them: 20.1 MB."""
    if count < 1_000_000:
        return f"{count / 1e3:.1f} kB"
    if count < 1_000_000_000:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.2f} GB"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three significant digits."""
    value = 1e3 * seconds
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 500MB, 2GB or 1.5GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise InvalidAttributeError(f"{text!r} is no size: write a number and a unit, such as 500MB or 2GiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
