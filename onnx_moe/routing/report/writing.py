"""Reports as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnx_moe.errors import InvalidInputError
from onnx_moe.routing.document import FORMAT, VERSION
from onnx_moe.routing.report.page import render_page
from onnx_moe.routing.report.reading import Document

SUFFIXES = (".html", ".json", ".jsonl")


def write_report(
    document: Document,
    path: str | Path,
    *,
    budget: float | None = None,
    bandwidth: float | None = None,
    compute_seconds: float = 0.0,
) -> Path:
    """Writes a profile's document as .html, .json or .jsonl, by the suffix of `path`; makes its folder.

    budget: bytes for experts, bandwidth: bytes a second of the disk, compute_seconds: of a token with all experts
    there, at which the page opens.
    Raises InvalidInputError for another suffix, and for a document that is no routing profile.
    """
    path = Path(path)
    check_suffix(path)
    writers: dict[str, Callable[[], str]] = {
        ".html": lambda: render_page(document, budget=budget, bandwidth=bandwidth, compute_seconds=compute_seconds),
        ".json": lambda: _json(document) + "\n",
        ".jsonl": lambda: "".join(_json(record) + "\n" for record in json_lines(document)),
    }
    _check(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(writers[path.suffix](), encoding="utf-8")
    return path


def check_suffix(path: Path) -> None:
    """InvalidInputError for a report of another kind than .html, .json or .jsonl."""
    if path.suffix not in SUFFIXES:
        raise InvalidInputError(
            f"a report cannot be written as {path.name!r}: use a name that ends in {', '.join(SUFFIXES)}."
        )


def _json(value: Document) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def json_lines(document: Document) -> Iterator[dict[str, Any]]:
    """A profile as records, for tools that read line by line: "profile", then each "layer", "predictor" and "cache"."""
    yield {"record": "profile", **document["model"], **document["recorded"], "summary": document["summary"]}
    for layer in document["per_layer"]:
        yield {"record": "layer", **layer, **_of_layer(document, layer["layer"])}
    for score in (document.get("predictors") or {}).get("scores", []):
        yield {"record": "predictor", **score}
    for curve in (document.get("cache") or {}).get("curves", []):
        sizes = curve["bytes"] or [None] * len(curve["capacity"])
        for capacity, size, rate in zip(curve["capacity"], sizes, curve["hit_rate"], strict=True):
            yield {"record": "cache", "policy": curve["policy"], "capacity": capacity, "bytes": size, "hit_rate": rate}


def _of_layer(document: Document, index: int) -> dict[str, Any]:
    """What the sections by phase say about one layer."""
    rows: dict[str, Any] = {}
    for phase, maps in document["maps"].items():
        if maps:
            rows[f"{phase}_share"] = maps["share"][index]
            rows[f"{phase}_mass"] = maps["mass"][index] if maps["mass"] else None
    for phase, time in (document["time"] or {}).items():
        if time:
            rows[f"{phase}_overlap"] = time["overlap"][index]
    rows["cooccurrence"] = document["cooccurrence"]["per_layer"][index]["top"]
    return rows


def _check(document: Document) -> None:
    kind, version = document.get("format"), document.get("version")
    if (kind, version) != (FORMAT, VERSION):
        raise InvalidInputError(
            f"the document says format {kind!r}, version {version!r}, but a report needs {FORMAT!r}, "
            f"version {VERSION}: make it with RoutingProfile.document() of this release."
        )
