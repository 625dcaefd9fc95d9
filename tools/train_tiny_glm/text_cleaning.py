"""Cleans texts, refuses what is not English or code, and removes paragraphs that were seen before."""

from __future__ import annotations

import hashlib
import re

_TYPOGRAPHY = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "--", "…": "...", "•": "-", "\u00a0": " "}
    | {"§": "", "ⓘ": ""}
)
_DUPLICATE_MIN_CHARS = 60


def normalize(text: str) -> str:
    """ASCII punctuation, no trailing blanks, at most two empty lines in a row."""
    text = text.translate(_TYPOGRAPHY).replace("\r\n", "\n").replace("\f", "\n").expandtabs(4)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


def is_usable(text: str) -> bool:
    """Long enough, mostly ASCII letters, ordinary lines: no tables, other languages or minified code."""
    if len(text) < 400:
        return False
    lines = text.splitlines()
    letters = sum(character.isascii() and character.isalpha() for character in text)
    blanks = text.count(" ") + len(lines)
    return (
        letters > 0.6 * (len(text) - blanks)
        and len(text.encode()) < 1.02 * len(text)
        and len(text) < 120 * len(lines)
        and max(map(len, lines)) < 2000
    )


class Deduplicator:
    """Remembers paragraphs (runs of lines between empty lines) and drops long ones that come again."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def unseen(self, text: str) -> str:
        kept = []
        for paragraph in re.split(r"(?<=\n)\n+(?=\S|\s)", text):
            if len(paragraph) >= _DUPLICATE_MIN_CHARS:
                digest = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=8).digest()
                if digest in self._seen:
                    continue
                self._seen.add(digest)
            kept.append(paragraph)
        return "\n".join(kept)
