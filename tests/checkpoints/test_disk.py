"""Files past the system's cache, shards in pieces, memory that is used again."""

from __future__ import annotations

import gc
import mmap
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

from onnx_moe.export.checkpoint import disk, shard_file
from onnx_moe.export.checkpoint.buffers import BufferPool
from onnx_moe.export.checkpoint.disk import UncachedReader, UncachedWriter, file_digest
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
@pytest.mark.parametrize("block", [1 << 18, 4 << 20])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, _SIZE), (1, 4096), (4095, 2), (8191, 550_001), (4096, 8192), (_SIZE - 1, 1), (7, 0)]
)
def test_any_part_of_a_file_is_read(
    offset: int, size: int, block: int, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_BLOCK", block)
    reader = UncachedReader(BufferPool())
    values = reader.read(tmp_path / "file", offset, size)
    assert values is not None
    assert values.tobytes() == content[offset : offset + size]
    reader.close()


@pytest.mark.usefixtures("cache", "content")
@pytest.mark.parametrize(("offset", "size"), [(_SIZE - 5, 6), (_SIZE, 1), (_SIZE + 10_000, 3), (0, _SIZE + 1)])
def test_a_file_that_ends_before(offset: int, size: int, tmp_path: Path) -> None:
    reader = UncachedReader(BufferPool())
    assert reader.read(tmp_path / "file", offset, size) is None
    reader.close()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("skipped", [0, 64])
@pytest.mark.parametrize(("offset", "size"), [(0, 1 << 20), (4096, 65_536), (5, 300_000), (100, 3), (0, 0)])
def test_any_part_of_a_file_is_written(offset: int, size: int, skipped: int, tmp_path: Path) -> None:
    """What lies before and after stays, wherever the data lie in memory."""
    total = 1_200_000
    writer = UncachedWriter(tmp_path / "new", total, BufferPool())
    expected = np.random.default_rng(0).integers(0, 256, total, np.uint8)
    writer.write(expected[:], 0)
    data = BufferPool().take(skipped + size)[skipped:]
    data[:] = expected[offset : offset + size] = 7
    writer.write(data, offset)
    writer.sync()
    writer.close()
    assert (tmp_path / "new").read_bytes() == expected.tobytes()


def test_a_file_that_opens_once_only_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, flags: int) -> int:
        raise OSError("too many open files")

    closed: list[int] = []
    close = os.close
    monkeypatch.setattr(disk, "open_uncached", fails)
    monkeypatch.setattr(os, "close", lambda descriptor: (closed.append(descriptor), close(descriptor)))
    with pytest.raises(OSError, match="too many open files"):
        UncachedWriter(tmp_path / "new", _SIZE, BufferPool())
    assert len(closed) == 1


def _shard() -> Shard:
    """Outputs of many sizes with room between them for alignment."""
    shard = Shard()
    for index, size in enumerate((1, 70_000, 100, 3 << 20, 65_536, 13)):
        shard.add(_OneOutput(Output(f"output{index}", torch.uint8, (size,))))  # type: ignore[arg-type]
    return shard


class _OneOutput:
    def __init__(self, output: Output) -> None:
        self.outputs = (output,)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("waiting", [0, 200_000, 64 << 20])
@pytest.mark.parametrize("size", [50_021, 150_001, 131_072])
@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_a_shard_in_pieces(
    order: str, size: int, waiting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_file, "_MOST_WAITING", waiting)
    shard = _shard()
    generator = np.random.default_rng(1)
    data = {name: generator.integers(0, 256, place.output.nbytes, np.uint8) for name, place in shard.places.items()}
    pieces = [(name, first) for name, values in data.items() for first in range(0, len(values), size)]
    if order != "forwards":
        pieces.reverse() if order == "backwards" else random.Random(2).shuffle(pieces)
    file = ShardFile(tmp_path / "shard", shard, BufferPool())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda piece: file.write(*piece, data[piece[0]][piece[1] : piece[1] + size]), pieces))
    digest = file.finish()
    file.close()
    content = (tmp_path / "shard").read_bytes()
    assert len(content) == shard.nbytes
    expected = bytearray(shard.nbytes)
    for name, place in shard.places.items():
        expected[place.offset : place.offset + place.output.nbytes] = data[name].tobytes()
    assert content == bytes(expected)
    assert digest == file_digest(tmp_path / "shard") == xxh3_128(content).hexdigest()
    assert file._waiting_bytes == 0


def test_a_shard_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    shard = _shard()
    file = ShardFile(tmp_path / "shard", shard, BufferPool())
    for name, place in shard.places.items():
        file.write(name, 0, np.zeros(place.output.nbytes, np.uint8))
    assert file._digest.nbytes == shard.nbytes
    file.close()


def test_what_waits_to_be_hashed_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "_MOST_WAITING", 1 << 20)
    file = ShardFile(tmp_path / "shard", _shard(), BufferPool())
    for first in range(100_000, 3 << 20, 100_000):  # not from the beginning on
        file.write("output3", first, np.zeros(min(100_000, (3 << 20) - first), np.uint8))
        assert file._waiting_bytes <= 1 << 20
    assert file._waiting_bytes > 1 << 19
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
    assert pool.take(5).ctypes.data % mmap.PAGESIZE == 0


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
