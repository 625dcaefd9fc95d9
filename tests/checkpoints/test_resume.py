"""Exports that are interrupted: nothing half-written under the final name, finished shards kept once verified.

The weights are real; the graph, which takes seconds to trace and does not matter here, is a list of initializers.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint import CheckpointOptions, export_checkpoint, writer
from onnx_moe.export.checkpoint import api as checkpoint_api
from onnx_moe.export.checkpoint.files import CheckpointFiles

from .folders import load_tensors, save_tensors, write_checkpoint
from .weights_only import graph_of_weights

_OPTIONS = CheckpointOptions(shard_bytes=150_000)


@pytest.fixture(autouse=True, scope="module")
def _without_trace() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_api, "trace_model", graph_of_weights)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("resume") / "checkpoint", num_hidden_layers=2)


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> Path:
    return export_checkpoint(checkpoint, checkpoint.with_name("whole"), _OPTIONS).folder


@pytest.fixture
def interrupted(checkpoint: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an export was to go that was stopped before its last shard."""
    shards = len(list(whole.glob("model.onnx.data*")))
    assert shards > 2
    with monkeypatch.context() as patch:
        _stop_before(shards, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(checkpoint, tmp_path / "out", _OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    return tmp_path / "out"


def _stop_before(number: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises `error` instead of writing shard `number`, when those before are finished."""
    write = writer._ShardWriter.write

    def write_shard(self: writer._ShardWriter, shard: Any, path: Path) -> None:
        if f"-{number:05}-of-" in shard.name:
            self.finish()
            raise error
        write(self, shard, path)

    monkeypatch.setattr(writer._ShardWriter, "write", write_shard)


def _written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Will hold the names of the shards that are written from now on."""
    names: list[str] = []
    write = writer._ShardWriter.write

    def write_shard(self: writer._ShardWriter, shard: Any, path: Path) -> None:
        names.append(shard.name)
        write(self, shard, path)

    monkeypatch.setattr(writer._ShardWriter, "write", write_shard)
    return names


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_call_goes_on(
    interrupted: Path, checkpoint: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = _written(monkeypatch)
    report = export_checkpoint(checkpoint, interrupted, _OPTIONS)
    assert len(names) == 1
    assert report.resumed_bytes > 0
    assert _contents(report.folder) == _contents(whole)
    assert not interrupted.with_name("out.partial").exists()


def test_a_shard_that_changed_is_written_again(
    interrupted: Path, checkpoint: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = sorted(interrupted.with_name("out.partial").glob("model.onnx.data*"))[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    names = _written(monkeypatch)
    report = export_checkpoint(checkpoint, interrupted, _OPTIONS)
    assert len(names) == 2
    assert damaged.name in names
    assert _contents(interrupted) == _contents(whole)
    kept = [path for path in interrupted.glob("model.onnx.data*") if path.name not in names]
    assert report.resumed_bytes == sum(path.stat().st_size for path in kept)


def test_other_options_do_not_go_on(interrupted: Path, checkpoint: Path) -> None:
    before = _contents(interrupted.with_name("out.partial"))
    with pytest.raises(CheckpointError, match=r"out\.partial is left from an export of another source.*remove it"):
        export_checkpoint(checkpoint, interrupted, CheckpointOptions(shard_bytes=150_000, scale="rceil"))
    assert _contents(interrupted.with_name("out.partial")) == before


def test_a_source_that_changed_does_not_go_on(interrupted: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Its files have their names and sizes still."""
    changed = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    os.utime(next(changed.glob("*.safetensors")), (0, 0))
    with pytest.raises(CheckpointError, match=r"out\.partial is left from an export of another source.*remove it"):
        export_checkpoint(changed, interrupted, _OPTIONS)


def test_everything_is_on_the_disk_before_the_folder_gets_its_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: set[int] = set()
    fsync, replace = os.fsync, os.replace
    renamed = []

    def record(descriptor: int) -> None:
        on_disk.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(source: Path, target: Path) -> None:
        if target == tmp_path / "out":
            assert {path.stat().st_ino for path in (source, *source.iterdir())} <= on_disk
            renamed.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", check)
    export_checkpoint(checkpoint, tmp_path / "out", _OPTIONS)
    assert len(renamed) == 1


def test_a_folder_that_comes_in_between(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    """Hours of work are not lost: the same call goes on once the folder is gone."""

    class Intruder:
        def stage(self, line: str) -> None:
            if line == "writing the model":
                (tmp_path / "out" / "mine").mkdir(parents=True)

        def total(self, nbytes: int) -> None: ...
        def advance(self, nbytes: int) -> None: ...

    with pytest.raises(CheckpointError, match=r"out\.partial cannot be written: .*then goes on"):
        export_checkpoint(checkpoint, tmp_path / "out", _OPTIONS, Intruder())
    shutil.rmtree(tmp_path / "out")
    report = export_checkpoint(checkpoint, tmp_path / "out", _OPTIONS)
    assert report.resumed_bytes == sum(path.stat().st_size for path in whole.glob("model.onnx.data*"))
    assert _contents(report.folder) == _contents(whole)


def test_a_full_disk(checkpoint: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_before(2, OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with pytest.raises(CheckpointError, match=r"out\.partial cannot be written: .*No space.*then goes on"):
        export_checkpoint(checkpoint, tmp_path / "out", _OPTIONS)
    assert not (tmp_path / "out").exists()
    journal = json.loads((tmp_path / "out.partial" / "progress.json").read_text())
    assert len(journal["shards"]) == 1


def test_too_little_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_api.shutil, "disk_usage", lambda _path: usage._replace(free=50 << 20))
    with pytest.raises(CheckpointError, match=r"out takes 0\.07 GB, but .* has 0\.05 GB free: make room"):
        export_checkpoint(checkpoint, tmp_path / "out", _OPTIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("lost", "fits"), [(False, True), (True, False)])
def test_room_for_what_is_left(
    lost: bool, fits: bool, interrupted: Path, checkpoint: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that was being written has its room already; one that is gone needs it again."""
    partial = interrupted.with_name("out.partial")
    first, *_, last = sorted(path.name for path in whole.glob("model.onnx.data*"))
    (partial / last).write_bytes(bytes((whole / last).stat().st_size))
    if lost:
        (partial / first).unlink()
    usage = shutil.disk_usage(partial)
    free = checkpoint_api._SPARE + 4096  # less than a shard
    monkeypatch.setattr(checkpoint_api.shutil, "disk_usage", lambda _path: usage._replace(free=free))
    if fits:
        assert _contents(export_checkpoint(checkpoint, interrupted, _OPTIONS).folder) == _contents(whole)
    else:
        with pytest.raises(CheckpointError, match="free: make room"):
            export_checkpoint(checkpoint, interrupted, _OPTIONS)


def test_a_weight_that_is_no_number(checkpoint: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    tensors = load_tensors(damaged)
    tensors["model.layers.0.mlp.experts.3.up_proj.weight"][2, 5] = torch.nan
    save_tensors(damaged, tensors)
    with pytest.raises(ValueError, match=r"gate_up_proj, expert 3: .*weights hold nan at row 66"):
        export_checkpoint(damaged, tmp_path / "out", _OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_source_is_read_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: dict[str, int] = {}
    read_run = CheckpointFiles._read_run

    def counting(self: CheckpointFiles, extents: Any) -> Any:
        for extent in extents:
            reads[extent.tensor.name] = reads.get(extent.tensor.name, 0) + extent.nbytes
        return read_run(self, extents)

    monkeypatch.setattr(CheckpointFiles, "_read_run", counting)
    export_checkpoint(checkpoint, tmp_path / "out", _OPTIONS)
    stored = {name: tensor.nbytes for name, tensor in load_tensors(checkpoint).items()}
    assert reads == stored
