"""Reading tensors of safetensors files: neighbours together, others joined, each with its digest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from xxhash import xxh3_128

from onnx_moe.export.checkpoint.files import CheckpointFiles, open_checkpoint

_NAMES = ("a", "b", "c", "d", "other")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(rows, 48, generator=generator).to(torch.bfloat16)
        for name, rows in zip(_NAMES, (40, 33, 1, 5000, 7), strict=True)
    }


@pytest.fixture
def files(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Iterator[CheckpointFiles]:
    parts = {"first": _NAMES[:4], "second": _NAMES[4:]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, tmp_path / f"{file}.safetensors")
    weight_map = {name: f"{file}.safetensors" for file, names in parts.items() for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(str(tmp_path)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("names", "reads"),
    [("a", 1), ("ab", 1), ("bcd", 1), ("ac", 2), ("ba", 2), ("abdc", 3), (("d", "other"), 2), (("other", "a"), 2)],
)
def test_neighbours_are_read_together(
    names: str | tuple[str, ...],
    reads: int,
    tensors: dict[str, torch.Tensor],
    files: CheckpointFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offsets: list[int] = []
    read = files._reader.read

    def counting(file: Path, offset: int, nbytes: int) -> object:
        offsets.append(offset)
        return read(file, offset, nbytes)

    monkeypatch.setattr(files._reader, "read", counting)
    values = files.read_together([files.tensors[name] for name in names])
    assert torch.equal(values, torch.cat([tensors[name] for name in names]))
    assert len(offsets) == reads
    assert files.digests == {
        f"{name}:0": xxh3_128(tensors[name].view(torch.uint8).numpy().tobytes()).hexdigest() for name in names
    }


def test_neighbours_lie_in_one_file(tmp_path: Path) -> None:
    """What begins where the other ends, but in another file, does not follow it."""
    values = {name: torch.randn(20, 4) for name in ("a1", "b1", "a2", "b2")}
    for number in "12":
        save_file({f"{name}{number}": values[f"{name}{number}"] for name in "ab"}, tmp_path / f"{number}.safetensors")
    weight_map = {name: f"{name[1]}.safetensors" for name in values}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(str(tmp_path)) as files:
        first, second = files.tensors["a1"], files.tensors["b2"]
        assert first.offset + first.nbytes == second.offset
        assert torch.equal(files.read_together([first, second]), torch.cat([values["a1"], values["b2"]]))


def test_rows(tensors: dict[str, torch.Tensor], files: CheckpointFiles) -> None:
    rows = files.read(files.tensors["d"], range(1234, 4321))
    assert torch.equal(rows, tensors["d"][1234:4321])
    assert list(files.digests) == ["d:1234"]


def test_a_file_need_not_align_its_tensors(tmp_path: Path) -> None:
    values = torch.randn(100, 7)
    header = json.dumps(
        {
            "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "values": {"dtype": "F32", "shape": [100, 7], "data_offsets": [1, 2801]},
        }
    ).encode()
    content = len(header).to_bytes(8, "little") + header + b"\x05" + values.numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(str(tmp_path)) as files:
        read = files.read(files.tensors["values"])
        assert torch.equal(read, values)
        assert read.data_ptr() % 4 == 0
