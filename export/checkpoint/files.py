"""A checkpoint's files: a folder in Hugging Face layout, its safetensors checked and read piece by piece.

Tensors are read into memory of their own: pages of a mapped file would count as this process's
memory, and a checkpoint is larger than that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint.buffers import BufferPool
from onnx_moe.export.checkpoint.disk import UncachedReader, bytes_digest

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

#: Torch's type for each element type that a safetensors header names.
TORCH_TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file: element type as safetensors calls it, position and size in bytes."""

    name: str
    file: Path
    element_type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        if self.element_type not in TORCH_TYPES:
            raise CheckpointError(
                f"{self.name} in {self.file} is {self.element_type}, an element type that this exporter does not "
                "read: convert the checkpoint to bfloat16, or to one of the FP4 layouts of docs/checkpoints.md."
            )
        return TORCH_TYPES[self.element_type]


@dataclass(frozen=True)
class _Extent:
    """Rows of a tensor, where they lie in its file; a scalar is one row."""

    tensor: StoredTensor
    first_row: int
    rows: int
    offset: int
    nbytes: int

    @classmethod
    def of(cls, tensor: StoredTensor, rows: range | None) -> _Extent:
        count = tensor.shape[0] if tensor.shape else 1
        first, number = (0, count) if rows is None else (rows.start, len(rows))
        row_bytes = tensor.nbytes // max(1, count)
        return cls(tensor, first, number, tensor.offset + first * row_bytes, number * row_bytes)

    def is_followed_by(self, other: _Extent) -> bool:
        return self.tensor.file == other.tensor.file and self.offset + self.nbytes == other.offset


def _runs(extents: list[_Extent]) -> list[list[_Extent]]:
    """`extents` in their order, those together that lie one after the other in a file."""
    runs: list[list[_Extent]] = []
    for extent in extents:
        if runs and runs[-1][-1].is_followed_by(extent):
            runs[-1].append(extent)
        else:
            runs.append([extent])
    return runs


class CheckpointFiles:
    """The tensors of a checkpoint's folder. Reads may be made from several threads; close it at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_bytes = _read_config(folder)
        self.shards = _find_shards(folder)
        self.tensors = _read_headers(folder, self.shards)
        #: What is read lies in these, as may what is made of it.
        self.buffers = BufferPool()
        self._reader = UncachedReader(self.buffers)
        #: XXH3 of each piece that was read, by "<tensor>:<first row>".
        self.digests: dict[str, str] = {}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def fingerprint(self) -> str:
        """A digest of the configuration and of each file's size and time: it changes when the folder does."""
        digest = hashlib.sha256(self.config_bytes)
        for shard in self.shards:
            status = shard.stat()
            digest.update(f"{shard.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def content_digest(self) -> str:
        """A digest of the configuration and of all that was read so far."""
        pieces = "".join(f"{piece} {value}\n" for piece, value in sorted(self.digests.items()))
        return bytes_digest(self.config_bytes + pieces.encode())

    def read(self, tensor: StoredTensor, rows: range | None = None) -> torch.Tensor:
        """All of `tensor`, or its `rows` along the first dimension, in memory of its own."""
        return self.read_together([tensor], rows)

    def read_together(self, tensors: Sequence[StoredTensor], rows: range | None = None) -> torch.Tensor:
        """`read` of each of `tensors`, one after the other along the first dimension; they differ in its size only."""
        extents = [_Extent.of(tensor, rows) for tensor in tensors]
        runs = [self._read_run(run) for run in _runs(extents)]
        values = runs[0] if len(runs) == 1 else self._joined(runs)
        first = tensors[0]
        shape = (sum(extent.rows for extent in extents), *first.shape[1:]) if first.shape else ()
        return torch.from_numpy(values).view(first.dtype).reshape(shape)

    def _read_run(self, extents: list[_Extent]) -> NDArray[np.uint8]:
        """The bytes of `extents`, which lie one after the other in a file."""
        first, nbytes = extents[0], sum(extent.nbytes for extent in extents)
        file = first.tensor.file
        values = self._reader.read(file, first.offset, nbytes)
        if values is None:
            raise CheckpointError(f"{file} became shorter while it was read: copy the checkpoint again.")
        done = 0
        for extent in extents:
            part = values[done : done + extent.nbytes]
            self.digests[f"{extent.tensor.name}:{extent.first_row}"] = bytes_digest(part.data)
            done += extent.nbytes
        # A file need not align its tensors, but Torch must find them aligned.
        aligned = first.offset % first.tensor.dtype.itemsize == 0
        return values if aligned else values.copy()

    def _joined(self, parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.concatenate(parts, out=self.buffers.take(sum(map(len, parts))))

    def close(self) -> None:
        self._reader.close()


@contextmanager
def open_checkpoint(source: str) -> Iterator[CheckpointFiles]:
    """The checkpoint `source`, a folder or the name of a repository on the Hugging Face hub, with checked headers."""
    files = CheckpointFiles(_locate(source))
    try:
        yield files
    finally:
        files.close()


def _locate(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{source} is a file: give the folder that holds config.json and *.safetensors.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise CheckpointError(
            f"{source} does not exist: give a checkpoint's folder, or a name on the Hugging Face hub such as "
            "zai-org/GLM-4.7-Flash."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"])
        )
    except Exception as error:  # its own, requests', the operating system's: whatever says that it is not to be had
        raise CheckpointError(
            f"{source} is no folder here and cannot be had from the Hugging Face hub ({type(error).__name__}): check "
            "the name and the network, or download it and give its folder."
        ) from error


def _read_config(folder: Path) -> bytes:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no config.json. Give a folder in Hugging Face layout (config.json and "
            "*.safetensors)."
        )
    content = path.read_bytes()
    if not isinstance(_parse(path, content), dict):
        raise CheckpointError(f"{path} holds no object: it is not a model's configuration.")
    return content


def _parse(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): copy the checkpoint again.") from error


def _find_shards(folder: Path) -> list[Path]:
    """The safetensors files of `folder`, all of those that its index names."""
    index = folder / _INDEX
    if not index.is_file():
        if (folder / _SINGLE).is_file():
            return [folder / _SINGLE]
        old = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
        remedy = f" It has {old[0]}: save the model again with safe_serialization." if old else ""
        raise CheckpointError(f"{folder} holds neither {_SINGLE} nor {_INDEX}: its weights are missing.{remedy}")
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        # Lexically: the hub's cache is made of symbolic links that lead out of the folder.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise CheckpointError(
                f"{index} names the file {name!r}, outside of the checkpoint's folder: do not trust it."
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} files that {_INDEX} names are missing in {folder}, the first of them "
            f"{missing[0]}: download the checkpoint again."
        )
    return [folder / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    content = _parse(index, index.read_bytes())
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files: copy it again.")
    return weight_map


def _read_headers(folder: Path, shards: list[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for tensor in _read_header(shard):
            if tensor.name in tensors:
                raise CheckpointError(f"{tensor.name} lies both in {tensors[tensor.name].file} and in {shard}.")
            tensors[tensor.name] = tensor
    if len(shards) > 1 or (folder / _INDEX).is_file():
        for name, file in _weight_map(folder / _INDEX).items():
            if name not in tensors or tensors[name].file.name != Path(file).name:
                raise CheckpointError(f"{_INDEX} says that {name} lies in {file}, but it does not: copy both again.")
    return tensors


def _read_header(shard: Path) -> Iterator[StoredTensor]:
    try:
        with safe_open(shard, framework="pt"):
            pass  # the library checks the header: sizes, offsets, that the file ends where it says
        with shard.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{shard} ({shard.stat().st_size} bytes) is no whole safetensors file ({error}): download it again."
        ) from error
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield StoredTensor(name, shard, entry["dtype"], tuple(entry["shape"]), 8 + size + begin, end - begin)
