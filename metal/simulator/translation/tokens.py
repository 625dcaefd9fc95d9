"""MSL text as tokens that know the white space before them, so that what is not edited is written as it was read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import MslError

# No ">>": two tokens ">" close nested template arguments, and are written the same.
_TOKEN = re.compile(
    r"""
    (?P<directive>\#[^\n]*)
  | (?P<string>"(?:\\.|[^"\\\n])*")
  | (?P<character>'(?:\\.|[^'\\\n])+')
  | (?P<number>\.?[0-9](?:[eEpP][+-]|[0-9A-Za-z_.'])*)
  | (?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
  | (?P<operator><<=|>>=|<=>|\.\.\.|->\*|::|->|\+\+|--|<<|<=|>=|==|!=|&&|\|\||\+=|-=|\*=|/=|%=|&=|\|=|\^=|\.\*
      | [][{}();:?~!+*/%^&|=<>,.@\\-])
""",
    re.VERBOSE,
)


@dataclass
class Token:
    """`text` as it was read, after `space`; written as `before` and `output`."""

    kind: str
    text: str
    space: str
    output: str
    before: str = ""
    #: What was written for it already is not looked at again.
    done: bool = False

    @property
    def is_name(self) -> bool:
        return self.kind == "name"

    def replace(self, output: str) -> None:
        self.output, self.done = output, True


def tokenize(text: str) -> list[Token]:
    """All tokens, and one of kind "end" for the white space after them."""
    tokens: list[Token] = []
    at = 0
    while True:
        begin = at
        while at < len(text) and text[at].isspace():
            at += 1
        space = text[begin:at]
        if at == len(text):
            return [*tokens, Token("end", "", space, "")]
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise MslError("there is no token at: " + text[at : at + 60])
        tokens.append(Token(match.lastgroup, match.group(), space, match.group()))
        at = match.end()


def render(tokens: Iterable[Token]) -> str:
    return "".join(token.space + token.before + token.output for token in tokens)
