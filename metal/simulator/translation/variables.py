"""Variables that C++ cannot express: function constants, constants of the program, threadgroup memory in functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MslError
from . import spelling
from .tokens import render, tokenize

if TYPE_CHECKING:
    from .program import Program

_SPECIFIERS = ("constant", "const", "constexpr", "static", "inline")


def program_variable(program: Program, begin: int, end: int) -> None:
    """A declaration outside functions."""
    words = program.source.words(begin, end)
    if "constant" not in words:
        return
    index = program.source.attributes(begin, end).get("function_constant")
    if index is not None:
        _function_constant(program, begin, end, int(index))
    elif program.target != "check":
        _constant(program, begin, end, words)


def _function_constant(program: Program, begin: int, end: int, index: int) -> None:
    from .program import FunctionConstant

    *specifiers, name = program.source.words(begin, end)
    kind = " ".join(word for word in specifiers if word not in _SPECIFIERS)
    program.function_constants[name] = FunctionConstant(index, kind)
    program.source.erase(begin, end)
    if program.open_constants:
        declaration = f"static {kind} {name}"
    else:
        space = "__constant " if program.target == "check" else ""
        declaration = f"static constexpr {space}{kind} {name} = ({kind}){int(program.constants.get(index, 0))}"
    program.source[begin].replace(declaration)


def _constant(program: Program, begin: int, end: int, words: list[str]) -> None:
    """A constant of the program; for CUDA constexpr, since device code does not see a plain one."""
    word = "constexpr" if program.target == "cuda" else "const"
    for index in program.source.plain(begin, end):
        if program.source[index].text == "constant":
            program.source[index].replace("" if "const" in words or "constexpr" in words else word)
            break
    program.source.put_before(begin, "static ")


def threadgroup_variables(program: Program, begin: int, end: int) -> None:
    """Rewrites declarations like "threadgroup float a[N], b[M];" among a function's statements."""
    source = program.source
    first_of_statement = True
    for index in list(source.plain(begin, end)):
        if first_of_statement and source[index].text == "threadgroup":
            _threadgroup_declaration(program, index, source.semicolon(index))
        first_of_statement = source[index].text in (";", "{", "}")


def _threadgroup_declaration(program: Program, begin: int, end: int) -> None:
    source = program.source
    words = source.words(begin, end)
    declarator = words[: next((i for i, word in enumerate(words) if word in ("=", "[")), len(words))]
    if "*" in declarator or "&" in declarator:  # an ordinary variable that points to threadgroup memory
        return
    if "=" in words:
        raise MslError("threadgroup memory cannot be initialised: " + " ".join(words))
    parts = source.split(begin + 1, end)
    names = [next(i for i in range(a, b + 1) if i == b or source[i].text == "[") - 1 for a, b in parts]
    kind = source.text(begin + 1, names[0])
    statements = []
    for name, (_, stop) in zip(names, parts, strict=True):
        program.threadgroup_variables += 1
        size = source.text(name + 1, stop)
        variable = source[name].text
        statements.append(
            {
                "cpu": f'auto& {variable} = msl_tg_var<{kind} {size}>({program.threadgroup_variables}u, "{variable}");',
                "cuda": f"__shared__ {kind} {variable} {size};",
                "check": f"__local auto& {variable} = msl_tg_var<{kind} {size}>();",
            }[program.target]
        )
    space = source[begin].space
    source.erase(begin, end + 1)
    source[begin].space = space
    tokens = tokenize(" ".join(statements))
    for token in tokens:
        token.output = spelling.number(token.text) if token.kind == "number" else token.text
    source[begin].replace(render(tokens))
