"""Whole causal language models as decoders with their cache in and out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import onnx_moe
from onnx_moe.export import ExportReport, with_fp4_weights
from onnx_moe.export.decoder import cache_name

from .models import ARCHITECTURES, Architecture, make_model

Array = NDArray[Any]

#: About thirty operators in a row, each with a relative error of some 1e-7 in either runtime.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Exported:
    """A model, with the values that its experts' FP4 codes stand for, and what became of it."""

    architecture: Architecture
    model: Any
    report: ExportReport


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    model = make_model(request.param)
    path = tmp_path_factory.mktemp("decoder") / f"{request.param}.onnx"
    report = onnx_moe.export(model, None, path)
    with with_fp4_weights(model, None):
        yield Exported(ARCHITECTURES[request.param], model, report)


class OnnxSteps:
    """An exported decoder, and the cache that it has filled so far."""

    def __init__(self, path: Path, batch: int, plugin: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if plugin:
            onnx_moe.register(options)
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.cache: dict[str, Array] = {
            value.name: np.zeros([batch, value.shape[1], 0, value.shape[3]], types[value.type])
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values.")
        }

    def step(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Array:
        """The logits of `input_ids`; what they leave in the cache is kept for the next step."""
        present = [name.replace("past_key_values", "present") for name in self.cache]
        feeds = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy(), **self.cache}
        logits, *tensors = self.session.run(["logits", *present], feeds)
        self.cache = dict(zip(self.cache, tensors, strict=True))
        result: Array = logits
        return result


class TorchSteps:
    """The same with the model itself."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: Any = None

    def step(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        with torch.no_grad():
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=positions,
                use_cache=True,
                **{cache_name(self.model): self.cache},
            )
        self.cache = output[cache_name(self.model)]
        logits: torch.Tensor = output.logits
        return logits


def relative_error(actual: Array | torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected|, Frobenius norms in float64; NaN if either holds one."""
    actual, wanted = np.asarray(actual, np.float64), expected.double().numpy()
    assert actual.shape == wanted.shape
    return float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))


def padded_prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 11, 8 and 1 tokens, padded on the left: longer than gpt-oss's window of 6."""
    input_ids = torch.randint(3, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :3] = 0
    attention_mask[2, :10] = 0
    return input_ids, attention_mask


def test_prompts_and_two_steps(exported: Exported) -> None:
    input_ids, attention_mask = padded_prompts()
    decoder, model = OnnxSteps(exported.report.path, 3), TorchSteps(exported.model)
    for _ in range(3):
        valid = attention_mask[:, -input_ids.shape[1] :].bool()
        expected = model.step(input_ids, attention_mask)
        assert relative_error(decoder.step(input_ids, attention_mask)[valid], expected[valid]) < TOLERANCE
        check_cache(decoder, model, attention_mask)
        input_ids = expected[:, -1:].argmax(-1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids)], dim=1)


def check_cache(decoder: OnnxSteps, model: TorchSteps, attention_mask: torch.Tensor) -> None:
    """Keys and values of all tokens that are no padding. (Torch's cache of a sliding window forgets the oldest.)"""
    for index, layer in enumerate(model.cache.layers):
        for name, expected in (("key", layer.keys), ("value", layer.values)):
            kept = expected.shape[2]
            valid = attention_mask[:, -kept:].bool()
            actual = decoder.cache[f"past_key_values.{index}.{name}"]
            assert actual.shape[2] == attention_mask.shape[1]
            actual = actual[:, :, -kept:].swapaxes(1, 2)[valid]
            assert relative_error(actual, expected.transpose(1, 2)[valid]) < TOLERANCE


def test_portable_bodies(exported: Exported) -> None:
    input_ids, attention_mask = padded_prompts()
    expected = TorchSteps(exported.model).step(input_ids, attention_mask)
    actual = OnnxSteps(exported.report.path, 3, plugin=False).step(input_ids, attention_mask)
    valid = attention_mask.bool()
    assert relative_error(actual[valid], expected[valid]) < TOLERANCE


def test_report(exported: Exported) -> None:
    architecture, report = exported.architecture, exported.report
    assert len(report.layers) == architecture.moe_layers
    for layer in report.layers:
        assert (layer.num_experts, layer.top_k, layer.hidden_size, layer.intermediate_size) == (8, 2, 64, 32)
        assert layer.shared_experts == architecture.shared_experts
        assert layer.router == architecture.router
    tensors = exported.model.state_dict().values()
    assert report.module_bytes >= sum(tensor.nbytes for tensor in tensors)
    assert report.model_bytes == sum(file.stat().st_size for file in report.path.parent.iterdir())


@pytest.mark.parametrize("name", ["glm4_moe_lite", "gpt_oss"])
def test_float16(name: str, tmp_path: Path) -> None:
    model = make_model(name, torch.float16)
    path = onnx_moe.export(model, None, tmp_path / "half.onnx").path
    input_ids, attention_mask = padded_prompts()
    valid = attention_mask.bool()
    actual = OnnxSteps(path, 3).step(input_ids, attention_mask)
    assert actual.dtype == np.float16
    with with_fp4_weights(model, None):
        half = TorchSteps(model).step(input_ids, attention_mask)
    model = model.float()
    with with_fp4_weights(model, None):
        exact = TorchSteps(model).step(input_ids, attention_mask)
    # Float16 rounds alike everywhere: ONNX Runtime must be about as near to float32 as Torch in float16 is.
    assert relative_error(actual[valid], exact[valid]) < 2 * relative_error(half[valid], exact[valid])
