"""Facts of the FP4 weight formats: E2M1 codes, two to a byte, in blocks along K that share one scale.

Sources: OCP Microscaling Formats (MX) 1.0 for E2M1, E8M0 and mxfp4; NVIDIA's NVFP4 for blocks of 16 with
E4M3 scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx_moe.errors import InvalidAttributeError

#: Value of each E2M1 code; bit 3 is the sign, so that code 8 is -0.
E2M1_VALUES: tuple[float, ...] = tuple(
    sign * magnitude for sign in (1.0, -1.0) for magnitude in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
)


def _e8m0_value(code: int) -> float:
    """A power of two without a sign: 2^(code - 127); 255 is NaN."""
    return math.nan if code == 0xFF else 2.0 ** (code - 127)


def _e4m3_value(code: int) -> float:
    """Sign, 4 exponent bits (bias 7), 3 mantissa bits, no infinities ("FN"): 0x7F and 0xFF are NaN."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = code >> 3 & 0xF, code & 0x7
    if exponent == 0xF and mantissa == 0x7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


#: Value of each E8M0 scale.
E8M0_VALUES: tuple[float, ...] = tuple(_e8m0_value(code) for code in range(256))

#: Value of each E4M3FN scale.
E4M3_VALUES: tuple[float, ...] = tuple(_e4m3_value(code) for code in range(256))


@dataclass(frozen=True)
class Fp4Format:
    """One FP4 format.

    `block_sizes` lists the legal numbers of weights to a scale, the format's own first. `scale_type` is the
    ONNX element type that stores the scales; `scale_values` gives the value of each uint8 scale and is None
    for float16 scales.
    """

    name: str
    block_sizes: tuple[int, ...]
    scale_type: str
    scale_values: tuple[float, ...] | None

    @property
    def default_block_size(self) -> int:
        return self.block_sizes[0]

    def resolve_block_size(self, block_size: int) -> int:
        """The block size that the attribute `block_size` asks for: 0 is the format's own."""
        if block_size == 0:
            return self.default_block_size
        if block_size not in self.block_sizes:
            legal = ", ".join(str(size) for size in self.block_sizes)
            raise InvalidAttributeError(
                f"block_size={block_size} does not exist in format {self.name!r}: use {legal}, or 0 for "
                f"{self.default_block_size}."
            )
        return block_size


FORMATS: dict[str, Fp4Format] = {
    entry.name: entry
    for entry in (
        Fp4Format("mxfp4", (32,), "uint8", E8M0_VALUES),
        Fp4Format("nvfp4", (16,), "uint8", E4M3_VALUES),
        Fp4Format("fp4", (128, 64, 32), "float16", None),
    )
}


def get_format(name: str) -> Fp4Format:
    """The format called `name`; InvalidAttributeError lists the known ones."""
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(repr(known) for known in FORMATS)
        raise InvalidAttributeError(f"format={name!r} is unknown: use one of {known}.") from None
