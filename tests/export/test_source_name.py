"""What a file tells of the model that it was made from: its name, and not where it lay."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

import onnx_moe
from onnx_moe.cli.accuracy import _named_reference
from onnx_moe.errors import InvalidModelError
from onnx_moe.export.finish import source_name
from onnx_moe.nn import SparseMoE


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An export of a module that was loaded from <tmp_path>/private/tiny."""
    layer = SparseMoE(32, 32, 4, 1)
    layer.name_or_path = str(tmp_path / "private" / "tiny")
    return onnx_moe.export(layer, (torch.randn(2, 32),), tmp_path / "out" / "model.onnx").path


def test_a_file_names_its_source_and_no_folder(exported: Path, tmp_path: Path) -> None:
    assert metadata(exported)["onnx_moe.source"] == "tiny"
    assert str(tmp_path).encode() not in exported.read_bytes()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("zai-org/GLM-4.7-Flash", "zai-org/GLM-4.7-Flash"),
        ("/home/somebody/models/tiny", "tiny"),
        ("/tiny", "tiny"),
        ("./tiny", "tiny"),
        ("~/tiny", "tiny"),
        ("tiny", "tiny"),
    ],
)
def test_names(source: str, expected: str) -> None:
    assert source_name(source) == expected


def test_a_folder_that_looks_like_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert source_name("private/tiny") == "tiny"


@pytest.mark.parametrize("place", [".", "out"])
def test_the_reference_is_found_by_its_name(
    place: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidModelError, match="was made from tiny, which lies neither here nor beside it"):
        _named_reference(exported)
    (tmp_path / place / "tiny").mkdir()
    (tmp_path / place / "tiny" / "config.json").write_text("{}")
    assert _named_reference(exported).resolve() == tmp_path / place / "tiny"
