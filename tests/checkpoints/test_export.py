"""A checkpoint streamed to a folder computes what the loaded model, exported in memory, computes: bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

import onnx_moe
from onnx_moe.export.checkpoint import CheckpointOptions, CheckpointReport, export_checkpoint
from onnx_moe.export.finish import ALIGNMENT
from tests.export.test_decoders import OnnxSteps, padded_prompts
from tools.model_table.architectures import make_model

from .folders import random_model


def _export_both(model: Any, folder: Path, **options: Any) -> tuple[CheckpointReport, Path]:
    """`model` saved and exported as a checkpoint, and loaded and exported in memory."""
    model.save_pretrained(folder / "checkpoint", max_shard_size="100KB")
    report = export_checkpoint(folder / "checkpoint", folder / "out", CheckpointOptions(**options))
    loaded = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", dtype=model.dtype, attn_implementation="eager")
    path = folder / "memory.onnx"
    onnx_moe.export(loaded, None, path, **options)
    return report, path


def _logits(path: Path) -> Any:
    return OnnxSteps(path, 3).step(*padded_prompts())


# Between them: experts apart and stacked, renamed, transposed; biases; shared experts; correction biases; layouts.
@pytest.mark.parametrize(
    ("model_type", "dtype", "options"),
    [
        ("mixtral", torch.float32, {"format": "nvfp4", "router_logits": True}),
        ("glm4_moe_lite", torch.bfloat16, {}),
        ("gpt_oss", torch.bfloat16, {"weight_layout": "interleaved"}),
    ],
)
def test_equals_the_export_in_memory(
    model_type: str, dtype: torch.dtype, options: dict[str, Any], tmp_path: Path
) -> None:
    report, path = _export_both(make_model(model_type, dtype), tmp_path, **options)
    streamed = report.folder / "model.onnx"
    np.testing.assert_array_equal(_logits(streamed), _logits(path))
    assert [value.name for value in ir.load(streamed).graph.outputs] == [
        value.name for value in ir.load(path).graph.outputs
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> CheckpointReport:
    """An export in several shards, with a tokenizer's files."""
    folder = tmp_path_factory.mktemp("sharded")
    random_model().save_pretrained(folder / "checkpoint")
    (folder / "checkpoint" / "tokenizer.json").write_text("{}")
    (folder / "checkpoint" / "optimizer.bin").write_text("not wanted")
    return export_checkpoint(folder / "checkpoint", folder / "out", CheckpointOptions(shard_bytes=150_000))


def test_shards_are_aligned(exported: CheckpointReport) -> None:
    model = ir.load(exported.folder / "model.onnx")
    external = [
        value.const_value
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    names = {str(tensor.location) for tensor in external}
    assert len(names) > 1
    assert names == {path.name for path in exported.folder.glob("model.onnx.data*")}
    for tensor in external:
        assert tensor.nbytes < ALIGNMENT or tensor.offset % ALIGNMENT == 0
    assert any(tensor.nbytes >= ALIGNMENT for tensor in external)


def test_the_folder_holds_all_that_a_program_needs(exported: CheckpointReport) -> None:
    names = {path.name for path in exported.folder.iterdir()}
    library = onnx_moe.library_path().name
    expected = {"model.onnx", "config.json", "generation_config.json", "tokenizer.json", "genai_config.json"}
    assert names - {name for name in names if name.startswith("model.onnx.data")} == {
        *expected,
        "manifest.json",
        library,
    }
    genai = json.loads((exported.folder / "genai_config.json").read_text())
    decoder = genai["model"]["decoder"]
    assert decoder["session_options"]["custom_ops_library"] == library
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (32, 2, 1)


def test_the_manifest_is_true(exported: CheckpointReport) -> None:
    manifest = json.loads((exported.folder / "manifest.json").read_text())
    files = {entry["name"]: entry for entry in manifest["files"]}
    assert set(files) == {path.name for path in exported.folder.iterdir()} - {"manifest.json"}
    for name, entry in files.items():
        content = (exported.folder / name).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["options"]["format"] == "mxfp4"
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["source"]["bytes"] == exported.source_bytes
    assert manifest["layers"][0]["router"] == "softmax"


def test_half_precision(exported: CheckpointReport, tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "half", CheckpointOptions(dtype="float16"))
    half = OnnxSteps(tmp_path / "half" / "model.onnx", 3).step(*padded_prompts())
    assert half.dtype == np.float16
    full = OnnxSteps(exported.folder / "model.onnx", 3).step(*padded_prompts())
    valid = padded_prompts()[1].bool().numpy()
    error = np.linalg.norm(half[valid] - full[valid]) / np.linalg.norm(full[valid])
    assert 0 < error < 2e-2  # some thirty roundings of 5e-4
