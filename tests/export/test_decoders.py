"""Whole causal language models as decoders with their cache in and out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import onnx_moe
from onnx_moe.errors import ExportError
from onnx_moe.export import ExportReport, with_fp4_weights
from onnx_moe.export.decoder import find_decoder
from onnx_moe.export.kv_cache import TOKENS, CacheLayout, find_cache_layout
from onnx_moe.export.text_model import TextModel
from tools.model_table.architectures import ARCHITECTURES, make_config, make_model
from tools.model_table.compare import OnnxSteps, TorchSteps, padded_prompts, relative_error
from tools.model_table.comparison import TOLERANCE


@dataclass(frozen=True)
class Sample:
    """What the export of an architecture must hold. router: of each MoE layer, or those of all in order."""

    router: str | tuple[str, ...]
    moe_layers: int = 2
    shared_experts: int = 0

    @property
    def routers(self) -> tuple[str, ...]:
        return self.router if isinstance(self.router, tuple) else (self.router,) * self.moe_layers


_HASHED = "ordinary ops: it does not run on random rows: "
_V4 = "sqrt_softplus, normalized"

#: Of every kind one: routers, shared experts, sliding windows, latent attention, an indexer, recurrent states, windows.
SAMPLES = {
    "mixtral": Sample("softmax after top-k"),
    "qwen3_moe": Sample("softmax"),
    "glm4_moe_lite": Sample("sigmoid, normalized", 1, 1),
    "deepseek_v3": Sample("sigmoid, normalized, 4 groups", 1, 2),
    "gpt_oss": Sample("softmax after top-k"),
    "deepseek_v32": Sample("sigmoid, normalized", 1, 1),
    "lfm2_moe": Sample("sigmoid, normalized", 1),
    "qwen3_next": Sample("softmax after top-k"),
    "nemotron_h": Sample("sigmoid, normalized"),
    "deepseek_v4": Sample((_HASHED, _V4, _V4), 3, 1),
}


@dataclass(frozen=True)
class Exported:
    """A model, with the values that its experts' FP4 codes stand for, and what became of it."""

    sample: Sample
    model: Any
    report: ExportReport


@pytest.fixture(scope="module", params=SAMPLES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    model = make_model(request.param)
    path = tmp_path_factory.mktemp("decoder") / f"{request.param}.onnx"
    report = onnx_moe.export(model, None, path)
    with with_fp4_weights(model, None):
        yield Exported(SAMPLES[request.param], model, report)


def test_prompts_and_two_steps(exported: Exported) -> None:
    input_ids, attention_mask = padded_prompts()
    decoder, model = OnnxSteps(exported.report.path, 3), TorchSteps(exported.model)
    layout = find_cache_layout(exported.model)
    for _ in range(3):
        valid = attention_mask[:, -input_ids.shape[1] :].bool()
        expected = model.step(input_ids, attention_mask)
        assert relative_error(decoder.step(input_ids, attention_mask)[valid], expected[valid]) < TOLERANCE
        check_cache(decoder, model, layout, attention_mask)
        input_ids = expected[:, -1:].argmax(-1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids)], dim=1)


def check_cache(decoder: OnnxSteps, model: TorchSteps, layout: CacheLayout, attention_mask: torch.Tensor) -> None:
    """States, and what is kept of all tokens that are no padding. (Torch's sliding windows forget the oldest.)"""
    assert len(decoder.cache) == len(layout.tensors)
    names = layout.names("past_key_values")
    for name, tensor, expected in zip(names, layout.tensors, layout.read(model.cache), strict=True):
        actual = torch.from_numpy(decoder.cache[name])
        if tensor.length == TOKENS:
            assert tensor.axis is not None
            kept = expected.shape[tensor.axis]
            assert actual.shape[tensor.axis] == attention_mask.shape[1]
            valid = attention_mask[:, -kept:].bool()
            actual = actual.movedim(tensor.axis, 1)[:, -kept:][valid]
            expected = expected.movedim(tensor.axis, 1)[valid]
        assert expected.numel() == 0 == actual.numel() or relative_error(actual, expected) < TOLERANCE, name


def test_portable_bodies(exported: Exported) -> None:
    input_ids, attention_mask = padded_prompts()
    expected = TorchSteps(exported.model).step(input_ids, attention_mask)
    actual = OnnxSteps(exported.report.path, 3, plugin=False).step(input_ids, attention_mask)
    valid = attention_mask.bool()
    assert relative_error(actual[valid], expected[valid]) < TOLERANCE


def test_report(exported: Exported) -> None:
    sample, report = exported.sample, exported.report
    assert len(report.layers) == sample.moe_layers
    for layer, router in zip(report.layers, sample.routers, strict=True):
        assert (layer.num_experts, layer.top_k, layer.hidden_size, layer.intermediate_size) == (8, 2, 64, 32)
        # Those of a layer that stays ordinary ops are not appended to its experts.
        assert layer.shared_experts == (0 if router == _HASHED else sample.shared_experts)
        assert layer.router.startswith(router) if router == _HASHED else layer.router == router
    assert report.module_bytes >= sum(tensor.nbytes for tensor in exported.model.parameters())
    assert report.model_bytes == sum(file.stat().st_size for file in report.path.parent.iterdir())


@pytest.mark.parametrize(
    "name", ["glm4_moe_lite", "gpt_oss", "qwen3_next", "lfm2_moe", "nemotron_h", "granitemoehybrid"]
)
def test_float16(name: str, tmp_path: Path) -> None:
    model = make_model(name, torch.float16)
    path = onnx_moe.export(model, None, tmp_path / "half.onnx").path
    input_ids, attention_mask = padded_prompts()
    valid = attention_mask.bool()
    actual = OnnxSteps(path, 3).step(input_ids, attention_mask)
    with with_fp4_weights(model, None):
        half = TorchSteps(model).step(input_ids, attention_mask)
    assert torch.from_numpy(actual).dtype == half.dtype  # Nemotron-H's logits are float32
    model = model.float()
    with with_fp4_weights(model, None):
        exact = TorchSteps(model).step(input_ids, attention_mask)
    # Float16 rounds alike everywhere: ONNX Runtime must be about as near to float32 as Torch in float16 is.
    assert relative_error(actual[valid], exact[valid]) < 2 * relative_error(half[valid], exact[valid])


def multimodal_model() -> Any:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = make_config(ARCHITECTURES["qwen3_vl_moe_text"]).to_dict()
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 16}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    return Qwen3VLMoeForConditionalGeneration(config).eval()


def test_text_model_of_a_multimodal_one() -> None:
    model = multimodal_model()
    decoder = find_decoder(model)
    assert isinstance(decoder, TextModel)
    assert decoder.language_model is model.model.language_model
    own_forward = model.forward

    def with_larger_logits(**inputs: Any) -> Any:
        output = own_forward(**inputs)
        output.logits = output.logits * 2
        return output

    model.forward = with_larger_logits
    with pytest.raises(ExportError, match="makes other logits of text"):
        find_decoder(model)


def test_caches_of_other_kinds() -> None:
    with pytest.raises(ExportError, match="keeps a cache of its own"):
        find_cache_layout(make_model("unlimited_ocr_text"))
