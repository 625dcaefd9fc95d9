"""Tokens that are spelled otherwise in C++, wherever they stand: attributes, address spaces, numbers, line markers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .source import ADDRESS_SPACES
from .tokens import Token

if TYPE_CHECKING:
    from .program import Program

_OPENCL_SPACES = dict(zip(ADDRESS_SPACES, ("__global", "__constant", "__local", "__private"), strict=True))
#: Names that OpenCL reserves and MSL does not.
_OPENCL_WORDS = {"global", "local", "private", "generic", "pipe", "complex", "imaginary"}
_FLOAT = re.compile(
    r"(?:(?:[0-9']+\.[0-9']*|\.[0-9']+)(?:[eE][+-]?[0-9']+)?|[0-9']+[eE][+-]?[0-9']+|0[xX][0-9a-fA-F.']+[pP][+-]?[0-9]+)"
    r"(?P<suffix>[fFhH]|bf|BF)?"
)
_LINE = re.compile(r'#\s*(\d+)\s+("(?:\\.|[^"])*")')


def respell(program: Program) -> None:
    """All tokens that no declaration's rewriting has dealt with."""
    source = program.source
    for index, token in enumerate(source.tokens):
        if source.is_attribute(index):
            for inside in source.tokens[index : source.closing(index) + 1]:
                if inside.kind != "directive":
                    inside.replace("")
        if token.kind == "directive":
            token.output = _directive(token.text)
        elif token.done:
            continue
        elif token.kind == "number":
            token.output = number(token.text)
        elif token.is_name:
            _name(program, index, token)


def _name(program: Program, index: int, token: Token) -> None:
    source = program.source
    checked = program.target == "check"
    if token.text in ADDRESS_SPACES:
        # What lies in constant memory is const.
        const = "const" if token.text == "constant" and not source.is_const(index) else ""
        token.output = f"{_OPENCL_SPACES[token.text]} {const}" if checked else const
    elif checked and token.text in _OPENCL_WORDS:
        token.output = "msl_id_" + token.text


def number(text: str) -> str:
    """A floating literal without suffix is a float in MSL; h and bf make half and bfloat."""
    match = _FLOAT.fullmatch(text)
    if match is None:
        return text
    suffix = match["suffix"]
    if suffix is None:
        return text + "f"
    if suffix in "hH":
        return f"half({text[:-1]}f)"
    return f"bfloat({text[:-2]}f)" if suffix in ("bf", "BF") else text


def _directive(text: str) -> str:
    marker = _LINE.match(text)
    return f"#line {marker[1]} {marker[2]}" if marker else ""
