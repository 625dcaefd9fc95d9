"""manifest.json: what an exported folder was made of, how, by what, and what its files must be."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx_moe.export.checkpoint.disk import file_digest
from onnx_moe.export.checkpoint.files import CheckpointFiles
from onnx_moe.export.checkpoint.graph import PendingModel
from onnx_moe.export.checkpoint.journal import Journal
from onnx_moe.export.checkpoint.options import CheckpointOptions

MANIFEST_NAME = "manifest.json"

_PACKAGES = ("onnx-moe", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "safetensors")


def versions() -> dict[str, str]:
    """Versions of the packages that make an export what it is."""
    return {package: version(package) for package in _PACKAGES}


def write_manifest(
    folder: Path,
    files: CheckpointFiles,
    options: CheckpointOptions,
    pending: PendingModel,
    format: str,
    layouts: set[str],
    journal: Journal,
) -> None:
    """Writes the manifest of all files that are in `folder` now, but for the journal and an earlier manifest."""
    written = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path not in (journal.path, folder / MANIFEST_NAME):
            known = journal.shards.get(path.name)
            digest = known.xxh3_128 if known is not None else file_digest(path)
            written.append({"name": path.name, "bytes": path.stat().st_size, "xxh3_128": digest})
    content: dict[str, Any] = {
        "source": {
            "name": files.folder.resolve().name,
            "bytes": files.nbytes,
            "xxh3_128": files.content_digest(),
            "layouts": sorted(layouts),
        },
        "options": {**options.as_dict(), "format": format},
        "versions": versions(),
        "layers": [asdict(layer) for layer in pending.layers],
        "files": written,
        "bytes": sum(entry["bytes"] for entry in written),
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
