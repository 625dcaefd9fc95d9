"""Writes text that no model of this folder was trained or tuned on: documents of source distributions from PyPI.

    pip download --no-deps --no-binary :all: django==5.2.8 tornado==6.5.2
    python fresh_text.py --out ../../bench/text django-5.2.8.tar.gz tornado-6.5.2.tar.gz

Only for packages that are not in the model card's list. Writes ``fresh.txt``, documentation first, then code, and
``fresh_sources.json`` with the checksum of each file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from corpus import deduplicated, rank, small_split
from documents import CODE, EXCLUDED_FOLDERS, PROSE, Document
from text_cleaning import Deduplicator, is_usable, normalize
from tokenizer import END_OF_TEXT

_KINDS = {".py": CODE, ".txt": PROSE, ".rst": PROSE, ".md": PROSE}
_BYTES_PER_KIND = 100_000
_DOCUMENT_CHARS = 6_000


def documents_of(sdist: Path) -> Iterator[Document]:
    """Code and documentation of a source distribution, without its tests."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            kind = _KINDS.get(path.suffix)
            content = archive.extractfile(member)
            if kind is None or content is None or EXCLUDED_FOLDERS & set(path.parts):
                continue
            text = normalize(content.read().decode("utf-8", errors="replace"))
            if is_usable(text):
                yield Document(kind, path.parts[0], "/".join(path.parts[1:]), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdists", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    found = sorted((document for sdist in arguments.sdists for document in documents_of(sdist)), key=rank)
    kept = small_split(deduplicated(found, Deduplicator()), _BYTES_PER_KIND, _DOCUMENT_CHARS)
    (arguments.out / "fresh.txt").write_text(END_OF_TEXT.join(document.text for document in kept), encoding="utf-8")
    sources = {
        "archives": {sdist.name: hashlib.sha256(sdist.read_bytes()).hexdigest() for sdist in arguments.sdists},
        "documents": [
            {key: value for key, value in vars(replace(document, text="")).items() if value} for document in kept
        ],
    }
    (arguments.out / "fresh_sources.json").write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")
    print(f"{len(kept)} documents")


if __name__ == "__main__":
    main()
