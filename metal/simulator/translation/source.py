"""A file's tokens with what a scanner asks of them: closing brackets, attributes, lists; and edits in place."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import MslError
from .tokens import Token, tokenize

_CLOSING = {"(": ")", "[": "]", "{": "}"}
ADDRESS_SPACES = ("device", "constant", "threadgroup", "thread")


class Source:
    """Ranges are of token indices, without their end."""

    def __init__(self, text: str) -> None:
        self.tokens = tokenize(text)

    def __getitem__(self, index: int) -> Token:
        return self.tokens[index]

    def __len__(self) -> int:
        return len(self.tokens)

    def closing(self, opening: int) -> int:
        """The bracket that closes the one at `opening`."""
        begin = self[opening].text
        depth = 0
        for index in range(opening, len(self)):
            text = self[index].text
            depth += (text == begin) - (text == _CLOSING[begin])
            if depth == 0:
                return index
        raise MslError(f"'{begin}' is not closed")

    def closing_angle(self, opening: int) -> int:
        """The '>' that closes the list of template arguments that begins at `opening`."""
        depth = 0
        index = opening
        while self[index].text not in (";", "{", ""):
            text = self[index].text
            if text in ("(", "["):
                index = self.closing(index)
            depth += (text == "<") - (text == ">")
            if depth == 0:
                return index
            index += 1
        raise MslError("'<' is not closed")

    def semicolon(self, index: int) -> int:
        """The first ';' from `index` on that no bracket holds."""
        while self[index].text != ";":
            if self[index].kind == "end":
                raise MslError("a declaration has no ';'")
            index = self.closing(index) + 1 if self[index].text in _CLOSING else index + 1
        return index

    def is_attribute(self, index: int) -> bool:
        return self[index].text == "[" and index + 1 < len(self) and self[index + 1].text == "["

    def plain(self, begin: int, end: int) -> Iterator[int]:
        """Indices of the tokens of a range that are neither in attributes nor directives."""
        index = begin
        while index < end:
            if self.is_attribute(index):
                index = self.closing(index)
            elif self[index].kind != "directive":
                yield index
            index += 1

    def words(self, begin: int, end: int) -> list[str]:
        return [self[index].text for index in self.plain(begin, end)]

    def text(self, begin: int, end: int) -> str:
        """On one line, without attributes."""
        return " ".join(self.words(begin, end))

    def attributes(self, begin: int, end: int) -> dict[str, str]:
        """What stands in [[…]] in a range: names, and the text of their arguments."""
        found = {}
        for index in range(begin, end):
            if not self.is_attribute(index):
                continue
            name = index + 2
            arguments = ""
            if self[name + 1].text == "(":
                close = self.closing(name + 1)
                arguments = self.text(name + 2, close)
            found[self[name].text] = arguments
        return found

    def split(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The ranges between a range's commas that no bracket holds."""
        parts, first, index = [], begin, begin
        while index < end:
            if self[index].text in _CLOSING:
                index = self.closing(index)
            elif self[index].text == "<" and self[index - 1].is_name:
                index = self.closing_angle(index)
            elif self[index].text == ",":
                parts.append((first, index))
                first = index + 1
            index += 1
        return [*parts, (first, end)] if begin < end else []

    def erase(self, begin: int, end: int) -> None:
        """Writes nothing for a range but its line breaks and line markers."""
        for token in self.tokens[begin:end]:
            if token.kind == "directive":
                continue
            token.before = ""
            token.space = "\n" * token.space.count("\n") or " "
            token.replace("")

    def put_before(self, index: int, text: str) -> None:
        """Before the first token from `index` on that is in no attribute and no directive."""
        token = self[next(self.plain(index, len(self)))]
        token.before = text + token.before

    def is_const(self, index: int) -> bool:
        """Whether the specifiers around the token at `index` say const already."""
        for step in (-1, 1):
            at = index + step
            while 0 <= at < len(self) and (self[at].kind in ("name", "directive") or self[at].text == "::"):
                if self[at].text in ("const", "constexpr"):
                    return True
                at += step
        return False
