"""Each way in which a checkpoint or a request can be wrong: one clear error, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from onnx_moe.errors import CheckpointError, ExportError, OnnxMoeError
from onnx_moe.export.checkpoint import CheckpointOptions, export_checkpoint
from tools.model_table.architectures import make_model

from .folders import load_tensors, rewrite_config, save_tensors, write_checkpoint

_INDEX = "model.safetensors.index.json"
_EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sound") / "checkpoint")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A sound checkpoint, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def _some_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def _without_shard(folder: Path) -> None:
    _some_shard(folder).unlink()


def _truncated(folder: Path) -> None:
    shard = _some_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-100])


def _escaping(folder: Path) -> None:
    index = json.loads((folder / _INDEX).read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../secret.safetensors"
    (folder / _INDEX).write_text(json.dumps(index))


def _absolute(folder: Path) -> None:
    index = json.loads((folder / _INDEX).read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "/etc/passwd"
    (folder / _INDEX).write_text(json.dumps(index))


def _lying_index(folder: Path) -> None:
    index = json.loads((folder / _INDEX).read_text())
    index["weight_map"]["model.norm.bias"] = _some_shard(folder).name
    (folder / _INDEX).write_text(json.dumps(index))


def _change(tensor: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_tensors(folder)
        changed = change(tensors.pop(tensor))
        if changed is not None:
            tensors[tensor] = changed
        save_tensors(folder, tensors)

    return damage


def _only_pickles(folder: Path) -> None:
    for file in (*folder.glob("*.safetensors"), folder / _INDEX):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


class Case(NamedTuple):
    damage: Callable[[Path], Any]
    message: str


CASES = {
    "missing shard": Case(_without_shard, r"1 of \d+ files that .*index\.json names are missing.*model-00002-of-"),
    "truncated safetensors": Case(_truncated, r"model-00002.*bytes\) is no whole safetensors file.*download it again"),
    "path that escapes": Case(_escaping, r"names the file '\.\./secret\.safetensors', outside of the checkpoint's"),
    "absolute path": Case(_absolute, r"names the file '/etc/passwd', outside of the checkpoint's folder"),
    "index that lies": Case(_lying_index, r"says that model\.norm\.bias lies in .*, but it does not"),
    "index that is no JSON": Case(lambda folder: (folder / _INDEX).write_text("{"), r"index\.json is not JSON"),
    "no configuration": Case(lambda folder: (folder / "config.json").unlink(), r"is no checkpoint: it has no config"),
    "no weights": Case(_only_pickles, r"its weights are missing.*pytorch_model\.bin: save the model again"),
    "wrong dtype": Case(
        _change(_EXPERT, lambda tensor: (tensor * 100).to(torch.int32)),
        r"experts\.3\.up_proj\.weight is I32 without scales.*use a checkpoint in bfloat16",
    ),
    "mismatched shape": Case(
        _change(_EXPERT, lambda tensor: tensor[:-1]), r"do not make up model\.layers\.0\.mlp\.experts\.gate_up_proj"
    ),
    "shapes of another configuration": Case(
        lambda folder: rewrite_config(folder, moe_intermediate_size=96),
        r"gives? .*experts\.\w+ the shape .*but config\.json makes it",
    ),
    "missing expert": Case(_change(_EXPERT, lambda _tensor: None), r"16 tensors .*up_proj\.weight, but .* has 15"),
    "missing tensor": Case(
        _change("model.norm.weight", lambda _tensor: None), r"The checkpoint has no model\.norm\.weight"
    ),
    "unknown architecture": Case(
        lambda folder: rewrite_config(folder, model_type="sparrow"),
        r"no configuration that transformers reads: .*sparrow.*needs a newer one",
    ),
    "architecture without experts": Case(
        lambda folder: rewrite_config(folder, model_type="llama"), r"model\.layers\.0\.mlp\.\w+_proj\.weight"
    ),
    "quantised by another method": Case(
        lambda folder: rewrite_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised by gptq, which this exporter does not read",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_checkpoint(case: str, folder: Path, tmp_path: Path) -> None:
    CASES[case].damage(folder)
    with pytest.raises(ExportError, match=f"(?s){CASES[case].message}"):
        export_checkpoint(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def test_flat_experts_in_fp4(tmp_path: Path) -> None:
    """Turned, for the matrices of all experts under one another: codes that no expert can have as they are."""
    make_model("dbrx").save_pretrained(tmp_path / "checkpoint")
    tensors = load_tensors(tmp_path / "checkpoint")
    name = next(name for name in tensors if name.endswith("experts.mlp.w1"))
    rows, columns = tensors.pop(name).shape
    tensors[f"{name}_blocks"] = torch.zeros(columns, rows // 32, 16, dtype=torch.uint8)
    tensors[f"{name}_scales"] = torch.full((columns, rows // 32), 127, dtype=torch.uint8)
    save_tensors(tmp_path / "checkpoint", tensors)
    with pytest.raises(CheckpointError, match=r"mlp\.w1 is in FP4 in a form that would have to be quantised again"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", r"absent does not exist: give a checkpoint's folder"),
        ("./nobody/nothing", r"\./nobody/nothing does not exist"),
        (__file__, r"is a file: give the folder"),
    ],
)
def test_a_source_that_is_none(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_checkpoint(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ExportError, match=r"someone/some-model is no folder here and cannot be had.*give its folder"):
        export_checkpoint("someone/some-model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"out exists: choose a new folder"):
        export_checkpoint(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, r"dtype='bfloat16' is unknown: use one of float32, float16"),
        ({"format": "int4"}, r"format='int4' is unknown"),
        ({"attention": "flash"}, r"attention='flash' is unknown: use sdpa or eager"),
        ({"shard_bytes": 0}, r"shard_bytes=0 must be positive"),
        ({"accuracy_level": 9}, r"accuracy_level=9"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxMoeError, match=message):
        CheckpointOptions(**options)
