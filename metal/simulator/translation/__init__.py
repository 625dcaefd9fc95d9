"""Kernel files in the Metal Shading Language, unchanged, as C++ for one of three targets.

MSL is C++ with attributes that carry meaning, address-space keywords, and threadgroup variables inside functions. Those
are rewritten; everything else is compiled as it is written, against the headers of ../shim. Line markers survive, so
that diagnostics name the lines of the kernel files.
"""

from .generate import entry_symbol, generate
from .preprocess import SHIM, preprocess
from .program import FunctionConstant, Kernel, Parameter, Program, Target

__all__ = [
    "SHIM",
    "FunctionConstant",
    "Kernel",
    "Parameter",
    "Program",
    "Target",
    "entry_symbol",
    "generate",
    "preprocess",
]
