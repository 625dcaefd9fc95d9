"""Checkpoints that ModelOpt itself quantised and wrote: their bytes are kept, and the model computes what they say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnx_moe.export.checkpoint import export_checkpoint
from tests.export.test_decoders import OnnxSteps, TorchSteps, padded_prompts, relative_error
from tools.model_table.comparison import TOLERANCE

from .folders import load_tensors, random_model

#: ModelOpt's configurations → the format, and how many columns share a scale. Both quantise attention, too.
CONFIGURATIONS = {"NVFP4_DEFAULT_CFG": ("nvfp4", 16), "MXFP4_DEFAULT_CFG": ("mxfp4", 32)}

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_EXPERTS = "model.layers.0.mlp.experts"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("modelopt") is None:
        pytest.skip("nvidia-modelopt is not installed")
    folder = tmp_path_factory.mktemp("modelopt")
    command = [sys.executable, "-m", "tests.checkpoints.modelopt_writer", str(folder), *CONFIGURATIONS]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def decoded(tensors: dict[str, torch.Tensor], name: str, block: int) -> torch.Tensor:
    """The matrix [N, K] that the tensors of `name` stand for, from the formats' definitions."""
    codes = tensors[f"{name}.weight"]
    nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    values = _E2M1[(nibbles & 7).long()] * torch.where(nibbles >= 8, -1.0, 1.0)
    scales = tensors[f"{name}.weight_scale"]
    steps = scales.float() if scales.is_floating_point() else torch.exp2(scales.float() - 127)
    steps = steps * tensors.get(f"{name}.weight_scale_2", torch.tensor(1.0))
    return values * steps.repeat_interleave(block, dim=1)


def stacked(tensors: dict[str, torch.Tensor], kind: str, *parts: str) -> torch.Tensor:
    """Tensors `kind` of each expert's `parts`, one part's rows after the other's."""
    experts = [
        torch.cat([tensors[f"{_EXPERTS}.{expert}.{part}.{kind}"].view(torch.uint8) for part in parts])
        for expert in range(4)
    ]
    return torch.stack(experts)


def decoded_model(tensors: dict[str, torch.Tensor], block: int) -> torch.nn.Module:
    """The model that was quantised, with the values that the checkpoint says."""
    model = random_model("qwen3_moe", torch.float32, num_experts=4)
    values = {name: tensor.float() for name, tensor in tensors.items() if name in model.state_dict()}
    for name in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
        values[f"{name}.weight"] = decoded(tensors, name, block)
    for kind, parts in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
        matrices = [
            torch.cat([values.pop(f"{_EXPERTS}.{expert}.{part}.weight") for part in parts]) for expert in range(4)
        ]
        values[f"{_EXPERTS}.{kind}"] = torch.stack(matrices)
    model.load_state_dict(values)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_bytes_and_logits(configuration: str, written: Path, tmp_path: Path) -> None:
    format, block = CONFIGURATIONS[configuration]
    report = export_checkpoint(written / configuration, tmp_path / "out")
    assert (report.format, report.layouts) == (format, (f"ModelOpt {format.upper()}",))

    tensors = load_tensors(written / configuration)
    initializers = ir.load(report.folder / "model.onnx").graph.initializers
    held = {name.rpartition(".experts.")[2]: value.const_value for name, value in initializers.items()}
    for name, parts in (("up", ("gate_proj", "up_proj")), ("down", ("down_proj",))):
        for buffer, kind in (("weights", "weight"), ("scales", "weight_scale")):
            actual = held[f"{name}_{buffer}"]
            assert actual is not None
            np.testing.assert_array_equal(actual.numpy(), stacked(tensors, kind, *parts).numpy())

    model = decoded_model(tensors, block)
    input_ids, attention_mask = padded_prompts()
    actual, expected = (
        steps.step(input_ids, attention_mask)
        for steps in (OnnxSteps(report.folder / "model.onnx", 3), TorchSteps(model))
    )
    valid = attention_mask.bool()
    assert relative_error(actual[valid], expected[valid]) < TOLERANCE
