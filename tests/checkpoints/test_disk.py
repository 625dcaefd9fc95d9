"""Files past the system's cache, shards in pieces, memory that is used again."""

from __future__ import annotations

import gc
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xxhash import xxh3_128

from onnx_moe.export.checkpoint import disk
from onnx_moe.export.checkpoint.buffers import BufferPool
from onnx_moe.export.checkpoint.disk import UncachedReader, file_digest
from onnx_moe.export.checkpoint.plan import Shard
from onnx_moe.export.checkpoint.shard_file import ShardFile
from onnx_moe.export.checkpoint.units import Output

_SIZE = 700_003


@pytest.fixture(params=["direct", "ordinary"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the file system can pass its cache by."""
    if request.param == "ordinary":
        open_file = os.open

        def refuse(path: Any, flags: int, *mode: int) -> int:
            if flags & getattr(os, "O_DIRECT", 0):
                raise OSError(22, "Invalid argument")
            return open_file(path, flags, *mode)

        monkeypatch.setattr(os, "open", refuse)
    return str(request.param)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = random.Random(0).randbytes(_SIZE)
    (tmp_path / "file").write_bytes(data)
    return data


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("staging", [1 << 18, 4 << 20])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, _SIZE), (1, 4096), (4095, 2), (8191, 550_001), (4096, 8192), (_SIZE - 1, 1), (7, 0)]
)
def test_any_part_of_a_file_is_read(
    offset: int, size: int, staging: int, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_STAGING_BYTES", staging)
    buffer = np.full(size, 0xA5, np.uint8)
    reader = UncachedReader(BufferPool())
    assert reader.read(tmp_path / "file", offset, buffer) == xxh3_128(content[offset : offset + size]).hexdigest()
    assert buffer.tobytes() == content[offset : offset + size]
    reader.close()


@pytest.mark.usefixtures("cache", "content")
@pytest.mark.parametrize(("offset", "size"), [(_SIZE - 5, 6), (_SIZE, 1), (_SIZE + 10_000, 3), (0, _SIZE + 1)])
def test_a_file_that_ends_before(offset: int, size: int, tmp_path: Path) -> None:
    reader = UncachedReader(BufferPool())
    assert reader.read(tmp_path / "file", offset, np.empty(size, np.uint8)) is None
    reader.close()


def _shard() -> Shard:
    """Outputs of many sizes with room between them for alignment."""
    shard = Shard()
    for index, size in enumerate((1, 70_000, 100, 3 << 20, 65_536, 13)):
        shard.add(_OneOutput(Output(f"output{index}", torch.uint8, (size,))))  # type: ignore[arg-type]
    return shard


class _OneOutput:
    def __init__(self, output: Output) -> None:
        self.outputs = (output,)


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_a_shard_in_pieces(order: str, tmp_path: Path) -> None:
    shard = _shard()
    generator = np.random.default_rng(1)
    data = {name: generator.integers(0, 256, place.output.nbytes, np.uint8) for name, place in shard.places.items()}
    pieces = [(name, first) for name, values in data.items() for first in range(0, len(values), 50_021)]
    if order != "forwards":
        pieces.reverse() if order == "backwards" else random.Random(2).shuffle(pieces)
    file = ShardFile(tmp_path / "shard", shard)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda piece: file.write(*piece, data[piece[0]][piece[1] : piece[1] + 50_021]), pieces))
    digest = file.finish()
    file.close()
    content = (tmp_path / "shard").read_bytes()
    assert len(content) == shard.nbytes
    expected = bytearray(shard.nbytes)
    for name, place in shard.places.items():
        expected[place.offset : place.offset + place.output.nbytes] = data[name].tobytes()
    assert content == bytes(expected)
    assert digest == file_digest(tmp_path / "shard") == xxh3_128(content).hexdigest()


def test_a_shard_is_hashed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages need not come back from the disk: before the end all but the last piece has been hashed."""
    shard = _shard()
    file = ShardFile(tmp_path / "shard", shard)
    for name, place in shard.places.items():
        file.write(name, 0, np.zeros(place.output.nbytes, np.uint8))
    assert file._digest.nbytes == shard.nbytes
    file.close()


def test_memory_is_used_again() -> None:
    pool = BufferPool()
    first = pool.take(3 << 20)
    address = first.ctypes.data
    view = torch.from_numpy(first)[100:].view(torch.int32)
    del first
    other = pool.take(3 << 20)
    assert other.ctypes.data != address  # a tensor refers to it still
    del view
    assert pool.take(3 << 20).ctypes.data == address
    assert pool.take(100 << 20).ctypes.data != address  # too small for that
    assert len(pool.take(0)) == 0


def test_what_waits_to_be_used_again_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_moe.export.checkpoint.buffers._MOST_FREE", 8 << 20)
    pool = BufferPool()
    arrays = [pool.take(4 << 20) for _ in range(6)]
    arrays.clear()
    pool.take(1 << 20)
    assert sum(map(len, pool._free)) <= 8 << 20


def test_memory_comes_back_within_a_garbage_collection() -> None:
    """It may run anywhere, in the pool's own statements too: nothing may wait for itself."""
    pool = BufferPool()

    def work() -> None:
        for _ in range(2000):
            cycle: list[Any] = [pool.take(1 << 18)]
            cycle.append(cycle)

    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        gc.set_threshold(*threshold)
