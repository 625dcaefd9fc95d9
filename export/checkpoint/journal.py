"""What an unfinished export has written so far, so that it can go on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint.disk import file_digest

_NAME = "progress.json"


@dataclass
class WrittenShard:
    """A finished file: its size and its XXH3."""

    nbytes: int
    xxh3_128: str


@dataclass
class Journal:
    """The finished shards in `folder`.

    identity: of source, options and layout, which an export that goes on shares. source_digests: of the pieces of the
    source that were read for these shards, and of some more.
    """

    folder: Path
    identity: str
    shards: dict[str, WrittenShard] = field(default_factory=dict)
    source_digests: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / _NAME

    def add(self, name: str, shard: WrittenShard, source_digests: dict[str, str]) -> None:
        """Enters a finished shard, and what was read until now."""
        self.shards[name] = shard
        self.source_digests |= source_digests
        self.write()

    def write(self) -> None:
        content = {
            "identity": self.identity,
            "shards": {name: asdict(shard) for name, shard in self.shards.items()},
            "source_digests": self.source_digests,
        }
        temporary = self.folder / f"{_NAME}.new"
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, self.path)

    def remove(self) -> None:
        self.path.unlink()

    def verified(self, name: str) -> bool:
        """Whether shard `name` was finished and still is what it was."""
        shard = self.shards.get(name)
        path = self.folder / name
        if shard is None or not path.is_file() or path.stat().st_size != shard.nbytes:
            return False
        return file_digest(path) == shard.xxh3_128


def open_journal(folder: Path, identity: str) -> Journal:
    """The journal of the unfinished export in `folder`, or a new one.

    Raises CheckpointError when `folder` holds an unfinished export of something else.
    """
    path = folder / _NAME
    if not folder.exists() or not any(folder.iterdir()):
        return Journal(folder, identity)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shards = {name: WrittenShard(**entry) for name, entry in content["shards"].items()}
        if content["identity"] == identity:
            return Journal(folder, identity, shards, dict(content["source_digests"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not written by an export, or not to its end
    raise CheckpointError(
        f"{folder} is left from an export of another source, version or other options, and cannot be gone on with: "
        "remove it, or choose another output folder."
    )
