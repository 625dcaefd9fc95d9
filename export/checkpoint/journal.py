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
    """A finished file: its size, its XXH3, and digests of the pieces of the source that it was made of."""

    nbytes: int
    xxh3_128: str
    source_digests: dict[str, str]


@dataclass
class Journal:
    """The finished shards in `folder`. identity: of source, options and layout, which an export that goes on shares."""

    folder: Path
    identity: str
    shards: dict[str, WrittenShard] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / _NAME

    def add(self, name: str, shard: WrittenShard) -> None:
        self.shards[name] = shard
        self.write()

    def write(self) -> None:
        content = {
            "identity": self.identity,
            "shards": {name: asdict(shard) for name, shard in self.shards.items()},
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
            return Journal(folder, identity, shards)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not written by an export, or not to its end
    raise CheckpointError(
        f"{folder} is left from an export of another source, version or other options, and cannot be gone on with: "
        "remove it, or choose another output folder."
    )
