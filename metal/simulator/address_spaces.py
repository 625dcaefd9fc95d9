"""Kernel files held against MSL's rules that C++ does not have: address spaces, and what the language leaves out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from . import compilers
from .errors import MslError
from .translation import SHIM, generate, preprocess
from .translation.tokens import tokenize

_FLAGS = ("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant", "-fsyntax-only", "-w")
_LINE = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')
_NOT_MSL = {
    "double",
    "goto",
    "new",
    "delete",
    "virtual",
    "dynamic_cast",
    "typeid",
    "throw",
    "try",
    "catch",
    "thread_local",
    "asm",
    "wchar_t",
}


def check(source: Path | str, definitions: Mapping[str, str] | None = None) -> list[str]:
    """Diagnostics by clang's C++ for OpenCL, in which a pointer into another address space is an error of its type."""
    if compilers.CLANG is None:
        raise MslError("address spaces are checked by clang, and there is none")
    text = preprocess(source, definitions)
    with tempfile.NamedTemporaryFile("w", suffix=".clcpp") as file:
        file.write(generate(text, "check"))
        file.flush()
        command = [compilers.CLANG, *_FLAGS, "-ferror-limit=0", f"-I{SHIM}", file.name]
        result = subprocess.run(command, capture_output=True, text=True)
    diagnostics = [line for line in result.stderr.splitlines() if re.search(r"(error|warning): ", line)]
    if result.returncode and not diagnostics:
        raise MslError(f"clang failed:\n{result.stderr}")
    return _forbidden_words(text) + diagnostics


def _forbidden_words(text: str) -> list[str]:
    """C++ that MSL does not have."""
    found, file, line = [], "?", 0
    for token in tokenize(text):
        line += token.space.count("\n")
        marker = _LINE.match(token.text) if token.kind == "directive" else None
        if marker:
            line, file = int(marker[1]) - 1, marker[2]
        elif token.is_name and token.text in _NOT_MSL:
            found.append(f"{file}:{line}:1: error: '{token.text}' is not available in MSL")
    return found
