"""A model without its weights is the one that transformers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from onnx_moe.export.checkpoint.skeleton import build_model, read_configuration
from tools.model_table.architectures import make_model

#: Norms, sinks, routers and convolutions that transformers keeps in float32, by names and parts of names.
KEEPING = ("gpt_oss", "glm4_moe_lite", "deepseek_v3", "ernie4_5_moe", "hy_v4", "bailing_hybrid", "deepseek_v4")


@pytest.mark.parametrize("model_type", ["qwen3_moe", *KEEPING])
def test_element_types(model_type: str, tmp_path: Path) -> None:
    make_model(model_type, torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    skeleton = build_model(read_configuration(tmp_path), torch.float16, None)
    expected = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert {name: parameter.dtype for name, parameter in skeleton.named_parameters()} == expected
    assert set(expected.values()) == {torch.float16, *([torch.float32] if model_type in KEEPING else [])}
