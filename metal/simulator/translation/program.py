"""A translation unit: its declarations found, its kernels and function constants listed, its text rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from . import spelling, variables
from .source import Source
from .tokens import render

#: "cpu": on fibers. "cuda": for nvcc. "check": clang's C++ for OpenCL, which has address spaces, for its diagnostics.
Target = Literal["cpu", "cuda", "check"]

POSITIONS = (
    "thread_position_in_grid",
    "threadgroup_position_in_grid",
    "thread_position_in_threadgroup",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "threads_per_threadgroup",
    "threads_per_grid",
    "threadgroups_per_grid",
    "threads_per_simdgroup",
)


@dataclass(frozen=True)
class Parameter:
    """Of a kernel: a buffer by its index, a position by its attribute, or neither, which no target can call."""

    text: str
    buffer: int | None = None
    position: str | None = None


@dataclass(frozen=True)
class Kernel:
    name: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class FunctionConstant:
    index: int
    type: str


@dataclass
class Program:
    """`constants`: values of function constants by index. `open_constants`: they are variables instead, one
    compilation serves all values."""

    text: str
    target: Target
    constants: Mapping[int, int] = field(default_factory=dict)
    open_constants: bool = False
    kernels: dict[str, Kernel] = field(default_factory=dict)
    function_constants: dict[str, FunctionConstant] = field(default_factory=dict)
    threadgroup_variables: int = 0

    def __post_init__(self) -> None:
        self.source = Source(self.text)
        index = 0
        while index < len(self.source):
            index = self._declaration(index)
        spelling.respell(self)

    def render(self) -> str:
        return render(self.source.tokens)

    def _declaration(self, begin: int) -> int:
        """Rewrites the declaration at `begin`; where the next one begins."""
        source = self.source
        if source[begin].kind in ("directive", "end") or source[begin].text == ";":
            return begin + 1
        if source[begin].text == "template":
            begin = source.closing_angle(begin + 1) + 1
        if source[begin].text in ("using", "typedef", "static_assert", "struct", "enum"):
            return source.semicolon(begin) + 1
        index = begin
        while source[index].text not in ("(", "=", ";", "{"):
            if source[index].text == "[":
                index = source.closing(index)
            elif source[index].text == "<":
                index = source.closing_angle(index)
            index += 1
        if source[index].text == "(":
            return self._function(begin, index)
        end = source.semicolon(index)
        variables.program_variable(self, begin, end)
        return end + 1

    def _function(self, begin: int, parenthesis: int) -> int:
        source = self.source
        close = source.closing(parenthesis)
        after = next(index for index in source.plain(close + 1, len(source)) if source[index].text in ("{", ";"))
        keyword = next((index for index in range(begin, parenthesis) if source[index].text == "kernel"), None)
        if keyword is not None:
            source[keyword].replace("")
            name = source[parenthesis - 1].text
            self.kernels[name] = Kernel(name, self._parameters(parenthesis + 1, close))
            source.put_before(begin, "static ")
        if self.target == "cuda":
            source.put_before(begin, "__device__ ")
        if source[after].text == ";":
            return after + 1
        end = source.closing(after)
        variables.threadgroup_variables(self, after + 1, end)
        return end + 1

    def _parameters(self, begin: int, end: int) -> tuple[Parameter, ...]:
        """Buffers that have no index get the lowest that are free, as in Metal."""
        source = self.source
        parts = [(source.words(*part), source.attributes(*part)) for part in source.split(begin, end)]
        taken = {int(attributes["buffer"]) for _, attributes in parts if "buffer" in attributes}
        parameters = []
        for words, attributes in parts:
            text = " ".join(words)
            position = next((name for name in attributes if name in POSITIONS), None)
            if position is not None:
                parameters.append(Parameter(text, position=position))
            elif "device" in words or "constant" in words:
                index = int(attributes["buffer"]) if "buffer" in attributes else _lowest_free(taken)
                taken.add(index)
                parameters.append(Parameter(text, buffer=index))
            else:
                parameters.append(Parameter(text))
        return tuple(parameters)


def _lowest_free(taken: set[int]) -> int:
    return next(index for index in range(len(taken) + 1) if index not in taken)
