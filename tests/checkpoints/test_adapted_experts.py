"""Architectures whose experts take an adapter, streamed: the bytes of the loaded model's export, Torch's logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from onnx_moe.export import with_fp4_weights
from onnx_moe.export.checkpoint import CheckpointOptions, export_checkpoint
from onnx_moe.export.discovery import find_layers
from onnx_moe.export.experts import experts_buffers
from onnx_moe.export.target import make_target
from tools.model_table.architectures import make_model
from tools.model_table.compare import OnnxSteps, TorchSteps, padded_prompts, relative_error
from tools.model_table.comparison import TOLERANCE

from .folders import fill, random_model


def dbrx() -> Any:
    return make_model("dbrx", torch.bfloat16)


def jetmoe() -> Any:
    return random_model("jetmoe", num_local_experts=8, kv_channels=32)


def multimodal_llama4() -> Any:
    """Llama 4 as it is published: the language model is a part of one that sees."""
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    widths = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    text = {**small, "hidden_size": 64, "num_key_value_heads": 2, "vocab_size": 97, "num_local_experts": 8}
    seeing = {**small, **widths, "image_size": 28}
    config = AutoConfig.for_model("llama4", text_config={**text, "pad_token_id": 0}, vision_config=seeing)
    return fill(AutoModelForMultimodalLM.from_config(config, dtype=torch.bfloat16).eval())


def experts_of_the_loaded_model(model: Any, options: CheckpointOptions) -> dict[str, np.ndarray]:
    """The FP4 tensors that the export of `model` would write, without the export, by name."""
    target = make_target(model, None)
    layers = find_layers(target.module, lambda: target.module(*target.example), True, target.must_reach_every_layer)
    return {
        f"{layer.path}.{name}": tensor.numpy()
        for layer in layers
        for name, tensor in experts_buffers(layer, options.quantization(None)).items()
    }


@pytest.mark.parametrize(
    ("make", "options"),
    [
        # Scales of all of an expert's rows, which lie in two parameters.
        (dbrx, {"format": "nvfp4"}),
        (jetmoe, {"format": "mxfp4", "weight_layout": "interleaved"}),
        (multimodal_llama4, {"format": "mxfp4"}),
    ],
    ids=["dbrx", "jetmoe", "llama4"],
)
def test_streamed(make: Callable[[], Any], options: dict[str, Any], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "checkpoint", max_shard_size="50KB")
    chosen = CheckpointOptions(**options)
    path = export_checkpoint(tmp_path / "checkpoint", tmp_path / "out", chosen).folder / "model.onnx"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.bfloat16)
    initializers = ir.load(path).graph.initializers
    expected = experts_of_the_loaded_model(model, chosen)
    assert len(expected) == model.config.num_hidden_layers * (6 if chosen.format == "nvfp4" else 4)
    for name, values in expected.items():
        tensor = initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), values, err_msg=name)
    with with_fp4_weights(model.float(), None, format=chosen.format or "") as decoded:
        wanted = TorchSteps(decoded).step(*padded_prompts())
    valid = padded_prompts()[1].bool()
    assert relative_error(OnnxSteps(path, 3).step(*padded_prompts())[valid], wanted[valid]) < TOLERANCE
