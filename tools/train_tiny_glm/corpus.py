"""Builds the corpus: tokenizer, token arrays, held-out text and a manifest of what went in.

    python corpus.py --work .train --model onnx_moe/data/tiny-glm

Writes ``train.npy`` and ``validation.npy`` (uint16) and ``manifest.json`` to the work folder, and the
tokenizer, ``heldout.txt`` and ``heldout_sources.json`` to the model folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from documents import PROSE, Document, documents
from ngrams import bits_per_token
from text_cleaning import Deduplicator, is_usable, normalize
from tokenizer import END_OF_TEXT, encode_documents, save_tokenizer, train_tokenizer

_SOURCE_LIMITS = {"manual pages": 13_000_000, "/usr/share/doc": 6_000_000}
_PACKAGE_LIMIT = 900_000
_KIND_LIMIT = 34_000_000
_HELD_OUT_BYTES = 60_000
_HELD_OUT_DOCUMENT_CHARS = 6_000
_VALIDATION_BYTES = 200_000


def rank(document: Document) -> int:
    """A fixed pseudo-random number per document: decides the split and the order."""
    key = f"{document.kind}/{document.source}/{document.name}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big")


def _split(document: Document) -> str:
    per_mille = rank(document) % 1000
    if per_mille < 45 and document.held_out_license:
        return "heldout"
    return "validation" if per_mille >= 985 else "train"


def _shortened(document: Document, limit: int) -> Document:
    """The beginning of a document, cut between paragraphs, so that a small split holds many documents."""
    if len(document.text) <= limit:
        return document
    end = document.text.rfind("\n\n", limit // 2, limit)
    return replace(document, text=document.text[: end if end > 0 else limit])


def deduplicated(candidates: Iterable[Document], deduplicator: Deduplicator) -> Iterable[Document]:
    for document in candidates:
        text = deduplicator.unseen(document.text).strip()
        if is_usable(text):
            yield replace(document, text=text)


def _within_limits(candidates: Iterable[Document]) -> list[Document]:
    """Keeps documents, in the order given, while their source and their kind have room."""
    taken: Counter[str] = Counter()
    kept = []
    for document in candidates:
        size = len(document.text)
        default_limit = _PACKAGE_LIMIT if "package" in document.source else _KIND_LIMIT
        limit = _SOURCE_LIMITS.get(document.source, default_limit)
        if taken[document.source] + size <= limit and taken[document.kind] + size <= _KIND_LIMIT:
            taken[document.source] += size
            taken[document.kind] += size
            kept.append(document)
    return kept


def small_split(candidates: Iterable[Document], bytes_per_kind: int, document_chars: int) -> list[Document]:
    taken: Counter[str] = Counter()
    kept = []
    for document in candidates:
        short = _shortened(document, document_chars)
        size = len(short.text.encode())
        if size >= 1500 and taken[short.kind] + size <= bytes_per_kind:
            taken[short.kind] += size
            kept.append(short)
    return sorted(kept, key=lambda document: document.kind != PROSE)


def gather() -> dict[str, list[Document]]:
    """All three splits; later splits contain no long paragraph of an earlier one."""
    splits: dict[str, list[Document]] = {"train": [], "validation": [], "heldout": []}
    for document in documents():
        cleaned = replace(document, text=normalize(document.text))
        if is_usable(cleaned.text):
            splits[_split(cleaned)].append(cleaned)
    deduplicator = Deduplicator()
    by_source = sorted(splits["train"], key=lambda document: ("package" in document.source, rank(document)))
    train = _within_limits(deduplicated(by_source, deduplicator))
    small = {}
    for name, size, chars in (
        ("validation", _VALIDATION_BYTES, 20_000),
        ("heldout", _HELD_OUT_BYTES, _HELD_OUT_DOCUMENT_CHARS),
    ):
        ordered = sorted(splits[name], key=rank)
        small[name] = small_split(deduplicated(ordered, deduplicator), size, chars)
    return {"train": sorted(train, key=rank), **small}


def _manifest(splits: dict[str, list[Document]]) -> dict[str, object]:
    sources: Counter[tuple[str, str]] = Counter()
    for document in splits["train"]:
        source = "Python packages" if document.source.startswith("package ") else document.source
        source = "documentation of Python packages" if source.startswith("documentation of") else source
        sources[document.kind, source] += len(document.text.encode())
    packages = {document.source.split()[-1] for document in splits["train"] if "package " in document.source}
    return {
        "sources": [{"kind": kind, "source": name, "bytes": size} for (kind, name), size in sources.most_common()],
        "documents": {name: len(split) for name, split in splits.items()},
        "bytes": {name: sum(len(document.text.encode()) for document in split) for name, split in splits.items()},
        "packages": sorted(packages, key=str.lower),
    }


def _write_held_out(held_out: list[Document], folder: Path) -> None:
    text = END_OF_TEXT.join(document.text for document in held_out)
    (folder / "heldout.txt").write_text(text, encoding="utf-8")
    sources = [
        {
            "kind": document.kind,
            "source": document.source,
            "name": document.name,
            "license": document.held_out_license,
            "bytes": len(document.text.encode()),
        }
        for document in held_out
    ]
    (folder / "heldout_sources.json").write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=2048)
    arguments = parser.parse_args()
    for folder in (arguments.work, arguments.model):
        folder.mkdir(parents=True, exist_ok=True)

    splits = gather()
    tokenizer = train_tokenizer((document.text for document in splits["train"]), arguments.vocabulary)
    save_tokenizer(tokenizer, arguments.model)
    _write_held_out(splits["heldout"], arguments.model)
    tokens = {
        name: encode_documents(tokenizer, [document.text for document in split]) for name, split in splits.items()
    }
    for name in ("train", "validation"):
        np.save(arguments.work / f"{name}.npy", tokens[name])
    manifest = _manifest(splits)
    manifest["tokens"] = {name: len(ids) for name, ids in tokens.items()}
    manifest["bits_per_token"] = bits_per_token(tokens, arguments.vocabulary)
    (arguments.work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in manifest.items() if key != "packages"}, indent=1))


if __name__ == "__main__":
    main()
