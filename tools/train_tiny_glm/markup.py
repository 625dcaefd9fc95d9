"""Plain text out of the three markups that documentation on a Unix machine comes in."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BLOCKS = frozenset(
    {"p", "div", "section", "article", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote"}
    | {"ul", "ol", "dl", "dt", "dd", "table", "tr", "details", "summary"}
)
_SKIPPED = frozenset({"script", "style", "nav", "button", "svg", "head", "footer", "noscript"})
_WHITE_SPACE = re.compile(r"[ \t\r\f]*\n[ \t\r\f\n]*|[ \t]+")


class _HtmlText(HTMLParser):
    """Collects text; white space collapses except inside ``<pre>``."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._skipped = 0
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self._skipped += 1
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag == "br":
            self.parts.append("\n")
        elif tag in _BLOCKS:
            self.parts.append("\n\n")
            self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self._skipped = max(0, self._skipped - 1)
        elif tag in _BLOCKS:
            self.parts.append("\n\n")
            self._preformatted = max(0, self._preformatted - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.parts.append(data if self._preformatted else _WHITE_SPACE.sub(_space, data))


def _space(match: re.Match[str]) -> str:
    return "\n" if "\n" in match.group() else " "


def html_to_text(source: str) -> str:
    """The text of the page's ``<main>`` element, or of the whole page where it has none."""
    main = re.search(r"<main\b.*</main>", source, re.DOTALL)
    parser = _HtmlText()
    parser.feed(main.group() if main else source)
    return "".join(parser.parts)


_ROFF_HEADINGS = ("SH", "SS", "Sh", "Ss")
_ROFF_FONTS = ("B", "I", "BR", "BI", "IR", "RB", "RI", "IB")
_ROFF_INLINE = (*_ROFF_FONTS, "TP", "IP", "Nm", "Fl", "Ar", "Xr", "Pa", "Nd", "Dq", "Em")
_ROFF_ESCAPES = (
    (re.compile(r"\\[*]-"), "-"),
    (re.compile(r"\\[hvw]'[^']*'|\\c"), ""),
    (re.compile(r"\\f(\[[^]]*\]|\(..|.)|\\[*]\([LR]q|\\s[-+]?\d+|\\[&|^/,%:]|\\m\[[^]]*\]"), ""),
    (re.compile(r"\\\((?:lq|rq|dq)|\\\[(?:lq|rq|dq)\]"), '"'),
    (re.compile(r"\\\((?:aq|cq|oq)|\\\[(?:aq|cq|oq)\]"), "'"),
    (re.compile(r"\\\(bu|\\\[bu\]"), "-"),
    (re.compile(r"\\\((?:em|en)|\\\[(?:em|en)\]"), "--"),
    (re.compile(r"\\\(co|\\\[co\]"), "(c)"),
    (re.compile(r"\\[~0 ]"), " "),
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\(?:e|\(rs|\[rs\])"), r"\\"),
    (re.compile(r"\\\(.{2}|\\\[[^]]*\]"), ""),
)


def _roff_arguments(rest: str, joiner: str) -> str:
    return joiner.join(quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', rest))


def roff_to_text(source: str) -> str:
    """Text of a man page: headings, paragraphs and examples; tables and macro definitions are left out."""
    lines: list[str] = []
    macro_end = ""
    for line in source.splitlines():
        if macro_end:
            macro_end = "" if line.startswith(macro_end) else macro_end
        elif line.startswith((".de", ".ig")):
            macro_end = ".."
        elif line.startswith(".TS"):
            macro_end = ".TE"
        elif not line.startswith((".", "'")):
            lines.append(line)
        elif request := re.match(r"[.']\s*([A-Za-z]+)\s*(.*)", line):
            name, rest = request.groups()
            if name in _ROFF_HEADINGS:
                lines += ["", _roff_arguments(rest, " ")]
            elif name in _ROFF_INLINE and rest:
                joiner = "" if len(name) == 2 and name in _ROFF_FONTS else " "
                lines.append(_roff_arguments(rest, joiner))
            elif name in ("PP", "P", "LP", "Pp", "TP", "IP", "It", "sp", "nf", "fi", "EX", "EE"):
                lines.append("")
    text = "\n".join(lines)
    for pattern, replacement in _ROFF_ESCAPES:
        text = pattern.sub(replacement, text)
    return text


def info_to_text(source: str) -> str:
    """Text of a GNU Info file: node headers, menus and tag tables are left out."""
    nodes = source.split("\x1f\n")
    kept = [node.split("\n", 1)[1] for node in nodes if node.startswith("File:") and "\n" in node]
    return re.sub(r"(?m)^\* (Menu:|.*::).*\n", "", "\n\n".join(kept)).replace("\x1f", "").replace("\x7f", "")


def pod_to_text(source: str) -> str:
    """Text of Perl's documentation format: commands lose their marker, ``X<...>`` its brackets."""
    text = re.sub(r"(?ms)^=(?:begin|for)\b.*?(?:^=end\b[^\n]*\n|\n\n)", "", source)
    text = re.sub(r"(?m)^=(?:head\d|item)\s+", "", text)
    text = re.sub(r"(?m)^=\w+.*\n", "", text)
    text = re.sub(r"X<[^<>]*>|Z<>", "", text)
    for _ in range(3):
        text = re.sub(r"[BCEFILS]<(?:<+ )?([^<>]*)(?: >+)?>", r"\1", text)
    return text
