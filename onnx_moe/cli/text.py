"""How the commands write numbers."""

from __future__ import annotations

import re

from onnx_moe.errors import InvalidInputError


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


_UNITS = {"": 1, "B": 1} | {
    letter + suffix: base**power
    for suffix, base in (("B", 1000), ("IB", 1024))
    for power, letter in enumerate("KMGT", 1)
}


def parse_bytes(text: str, what: str) -> int:
    """Bytes of "16GiB", "500 MB" or "123", in any case. Raises InvalidInputError that names `what`, also below 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size < 1:
        raise InvalidInputError(f"{what} is {text!r}: use a number of bytes, such as 16GiB or 500MB.")
    return size


def parse_bandwidth(text: str) -> float:
    """Bytes a second of "2GB/s". Raises InvalidInputError."""
    number, slash, second = text.strip().rpartition("/")
    if slash and second != "s":
        raise InvalidInputError(f"disk bandwidth is {text!r}: use bytes a second, such as 2GB/s.")
    return float(parse_bytes(number if slash else text, "disk bandwidth"))
