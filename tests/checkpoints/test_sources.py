"""Parameters read piece by piece from a checkpoint: those that transformers loads, of every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from onnx_moe.export.checkpoint.files import open_checkpoint
from onnx_moe.export.checkpoint.layouts import find_weights
from onnx_moe.export.checkpoint.skeleton import build_model, read_configuration
from onnx_moe.export.checkpoint.sources import match_sources
from tools.model_table.architectures import ARCHITECTURES, make_model

#: transformers gives the last of them a value of its own when it loads.
_NOT_AS_STORED = "gate.balancing_biases"


@pytest.mark.parametrize("model_type", [name for name, entry in ARCHITECTURES.items() if not entry.excluded])
def test_every_parameter(model_type: str, tmp_path: Path) -> None:
    model = make_model(model_type, torch.bfloat16)
    if not hasattr(model, "save_pretrained"):
        pytest.skip("a text model without a checkpoint of its own")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    with open_checkpoint(str(tmp_path)) as files:
        skeleton = build_model(read_configuration(tmp_path), torch.bfloat16, None)
        weights, _ = find_weights(files.tensors)
        sources = match_sources(skeleton, weights, files)
        assert sources.keys() == loaded.keys()
        for name, source in sources.items():
            values = source.read().to(loaded[name].dtype)
            last = len(values) - 1 if name.endswith(_NOT_AS_STORED) else None
            assert torch.equal(values[:last], loaded[name][:last]) if values.ndim else values == loaded[name], name
