"""Finds English documentation and Python code on the machine this runs on.

Everything is read from where operating systems and package managers put it; nothing is downloaded.
Machines differ, so a corpus is described by its manifest rather than by a fixed checksum.
"""

from __future__ import annotations

import gzip
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from markup import html_to_text, info_to_text, pod_to_text, roff_to_text

PROSE = "prose"
CODE = "code"
_MAX_FILE_BYTES = 1_500_000
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "testing", "idle_test", "lib2to3", "encodings", "__pycache__", "node_modules"}
    | {"_vendor", "_vendored", "vendor", "third_party"}
)


@dataclass(frozen=True)
class Document:
    """One text; ``name`` is stable across machines, ``held_out_license`` set where a copy may be shipped."""

    kind: str
    source: str
    name: str
    text: str
    held_out_license: str = ""


def read_text(path: Path) -> str:
    """Decoded content of a plain or gzip-compressed file, empty when it is unreadable or not UTF-8."""
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_FILE_BYTES else b""
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _files(root: Path, *suffixes: str) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.name.endswith(suffixes) and path.is_file() and not EXCLUDED_FOLDERS & set(inside.parts[:-1]):
            yield path


def _standard_library() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _files(root, ".py"):
        name = path.relative_to(root).as_posix()
        if not name.startswith(("site-packages/", "pydoc_data/")):
            yield Document(CODE, "Python standard library", name, read_text(path), "PSF-2.0")


def _python_topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Document(PROSE, "Python language reference (pydoc topics)", name, text, "PSF-2.0")


def _package_roots() -> list[Path]:
    candidates = [Path(sysconfig.get_path("stdlib")) / "site-packages", Path(sysconfig.get_path("purelib"))]
    return [root for root in dict.fromkeys(candidates) if root.is_dir()]


def _packages() -> Iterator[Document]:
    for root in _package_roots():
        for path in _files(root, ".py"):
            package = path.relative_to(root).parts[0].removesuffix(".py")
            yield Document(CODE, f"package {package}", path.relative_to(root).as_posix(), read_text(path))
        for path in _files(root, ".md", ".rst", "METADATA"):
            package = path.relative_to(root).parts[0].split("-")[0]
            text = read_text(path)
            if path.name == "METADATA":
                text = text.partition("\n\n")[2]
            yield Document(PROSE, f"documentation of package {package}", path.relative_to(root).as_posix(), text)


def _manual_pages() -> Iterator[Document]:
    for section in "12345678":
        for path in _files(Path("/usr/share/man") / f"man{section}", ".gz"):
            if not path.name.startswith("gcloud"):
                yield Document(PROSE, "manual pages", path.name, roff_to_text(read_text(path)))


def _info_manuals() -> Iterator[Document]:
    for path in _files(Path("/usr/share/info"), ".gz"):
        yield Document(PROSE, "GNU Info manuals", path.name, info_to_text(read_text(path)))


def _perl_manuals() -> Iterator[Document]:
    for root in (Path("/usr/share/perl"), Path("/usr/share/perl5")):
        for path in _files(root, ".pod"):
            yield Document(PROSE, "Perl manuals", path.relative_to(root).as_posix(), pod_to_text(read_text(path)))


def _shared_documentation() -> Iterator[Document]:
    root = Path("/usr/share/doc")
    plain = (".md", ".txt", ".rst", "README", "copyright")
    for path in _files(root, *plain, *(f"{suffix}.gz" for suffix in plain)):
        yield Document(PROSE, "/usr/share/doc", path.relative_to(root).as_posix(), read_text(path))
    for path in _files(root, ".html"):
        yield Document(PROSE, "/usr/share/doc", path.relative_to(root).as_posix(), html_to_text(read_text(path)))
    for path in _files(Path("/usr/share/common-licenses"), ""):
        yield Document(PROSE, "common licences", path.name, read_text(path))


_RUST_BOOKS_FREE_TO_SHIP = ("book", "cargo", "nomicon", "reference", "rust-by-example", "rustc")
_RUST_OTHER_BOOKS = (
    "clippy",
    "edition-guide",
    "embedded-book",
    "error_codes",
    "rustdoc",
    "style-guide",
    "unstable-book",
)
_RUST_STANDARD_LIBRARY = "std"
_RUST_DESCRIPTION = re.compile(r'<div class="docblock.*?</div></details>', re.DOTALL)
_RUST_REPEATED_PAGES = ("print.html", "toc.html", "all.html", "sidebar-items.html")


def _rust_documentation() -> Iterator[Document]:
    toolchains = sorted((Path.home() / ".rustup/toolchains").glob("stable*/share/doc/rust/html"))
    root = toolchains[-1] if toolchains else Path("/usr/share/doc/rust-doc/html")
    for folder in (*_RUST_BOOKS_FREE_TO_SHIP, *_RUST_OTHER_BOOKS, _RUST_STANDARD_LIBRARY):
        license_name = "MIT OR Apache-2.0" if folder in _RUST_BOOKS_FREE_TO_SHIP else ""
        for path in _files(root / folder, ".html"):
            if path.name in _RUST_REPEATED_PAGES:
                continue
            source = read_text(path)
            if folder == _RUST_STANDARD_LIBRARY:
                source = "".join(_RUST_DESCRIPTION.findall(source))
            name = path.relative_to(root).as_posix()
            yield Document(PROSE, "Rust documentation", name, html_to_text(source), license_name)


def documents() -> Iterable[Document]:
    """All documents in a fixed order; texts may be empty or repeated."""
    for source in (
        _standard_library,
        _python_topics,
        _rust_documentation,
        _manual_pages,
        _info_manuals,
        _perl_manuals,
        _shared_documentation,
        _packages,
    ):
        yield from source()
