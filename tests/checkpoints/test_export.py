"""A checkpoint streamed to a folder computes what the loaded model, exported in memory, computes: bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM
from xxhash import xxh3_128

import onnx_moe
from onnx_moe.export.api import with_fp4_weights
from onnx_moe.export.checkpoint import CheckpointOptions, CheckpointReport, export_checkpoint, units
from onnx_moe.export.finish import ALIGNMENT
from onnx_moe.operators import ROUTER
from tests.export.test_decoders import OnnxSteps, TorchSteps, padded_prompts, relative_error

from .folders import load_tensors, random_model

_GLM = {
    "n_routed_experts": 16,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "mlp_layer_types": ["sparse", "sparse"],
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
#: Apart experts that are stacked, shared experts, a correction bias.
_OPTIONS: dict[str, Any] = {"format": "nvfp4", "router_logits": True, "dense": "int4"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointReport]:
    """An export in several shards, with a tokenizer's files; matrices were written in parts."""
    folder = tmp_path_factory.mktemp("sharded")
    random_model("glm4_moe_lite", **_GLM).save_pretrained(folder / "checkpoint", max_shard_size="100KB")
    (folder / "checkpoint" / "tokenizer.json").write_text("{}")
    (folder / "checkpoint" / "optimizer.bin").write_text("not wanted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "_CHUNK", 3000)
        yield export_checkpoint(
            folder / "checkpoint", folder / "out", CheckpointOptions(shard_bytes=700_000, **_OPTIONS)
        )


def _logits(path: Path) -> Any:
    return OnnxSteps(path, 3).step(*padded_prompts())


def test_equals_the_export_in_memory(exported: CheckpointReport, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(exported.folder.with_name("checkpoint"), dtype=torch.bfloat16)
    onnx_moe.export(loaded, None, tmp_path / "memory.onnx", **_OPTIONS)
    np.testing.assert_array_equal(_logits(exported.folder / "model.onnx"), _logits(tmp_path / "memory.onnx"))
    streamed, memory = (ir.load(path).graph for path in (exported.folder / "model.onnx", tmp_path / "memory.onnx"))
    assert [value.name for value in streamed.outputs] == [value.name for value in memory.outputs]
    operators = [Counter(node.op_type for node in graph) for graph in (streamed, memory)]
    assert operators[0] == operators[1]
    assert operators[0]["MatMulNBits"] > 5
    for graph in (streamed, memory):
        first, last = (node for node in graph if node.op_type == ROUTER)
        assert first.inputs[4] is last.inputs[1]  # the next layer's gate, for reading its experts ahead
        assert last.inputs[4:] == ()


def test_half_precision(tmp_path: Path) -> None:
    """Experts that are stacked and transposed, biases, gates between the up rows, another layout; a head that is the
    embedding, which checkpoints hold once.
    """
    model = random_model("gpt_oss", num_local_experts=4, layer_types=["full_attention"], tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "checkpoint")
    assert "lm_head.weight" not in load_tensors(tmp_path / "checkpoint")
    options = CheckpointOptions(dtype="float16", weight_layout="interleaved")
    actual = _logits(export_checkpoint(tmp_path / "checkpoint", tmp_path / "half", options).folder / "model.onnx")
    assert actual.dtype == np.float16
    with with_fp4_weights(model.float(), None) as decoded:
        expected = TorchSteps(decoded).step(*padded_prompts())
    valid = padded_prompts()[1].bool()
    # Some thirty roundings of 5e-4.
    assert 0 < relative_error(actual[valid].astype(np.float32), expected[valid]) < 2e-3


def _is_large(node: ir.Node) -> bool:
    value = node.inputs[0]
    return value is not None and value.const_value is not None and value.const_value.nbytes >= ALIGNMENT


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    """Embedding and head lie at one place in the file, and the logits are those of two copies."""
    random_model(tie_word_embeddings=True, vocab_size=256).save_pretrained(tmp_path / "checkpoint")
    path = export_checkpoint(tmp_path / "checkpoint", tmp_path / "out").folder / "model.onnx"
    initializers = ir.load(path).graph.initializers
    (head,) = (node.inputs[1] for node in ir.load(path).graph if node.op_type == "Gemm")
    assert head is not None
    (embedding,) = (node.inputs[0] for node in ir.load(path).graph if node.op_type == "Gather" and _is_large(node))
    places = [initializers[value.name or ""].const_value for value in (embedding, head) if value is not None]
    assert places[0].name != places[1].name  # type: ignore[union-attr]
    assert len({(str(place.location), place.offset, place.length) for place in places}) == 1  # type: ignore[union-attr]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.bfloat16)
    onnx_moe.export(loaded, None, tmp_path / "memory.onnx")
    np.testing.assert_array_equal(_logits(path), _logits(tmp_path / "memory.onnx"))
    shapes = [value.shape for value in initializers.values()]
    assert ir.Shape([128, 256]) not in shapes  # turned, for a product of its own


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
    large = [tensor for tensor in external if tensor.nbytes >= ALIGNMENT]
    assert all(tensor.offset % ALIGNMENT == 0 for tensor in large)
    assert any(tensor.offset > 0 for tensor in large)


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
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (32, 1, 2)


def test_the_manifest_is_true(exported: CheckpointReport) -> None:
    manifest = json.loads((exported.folder / "manifest.json").read_text())
    files = {entry["name"]: entry for entry in manifest["files"]}
    assert set(files) == {path.name for path in exported.folder.iterdir()} - {"manifest.json"}
    for name, entry in files.items():
        content = (exported.folder / name).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["xxh3_128"] == xxh3_128(content).hexdigest()
    assert manifest["options"]["format"] == "nvfp4"
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["source"]["bytes"] == exported.source_bytes
    assert manifest["layers"][0]["router"].startswith("sigmoid")
