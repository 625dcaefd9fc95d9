"""Blocks and decoder layers of five architectures: ONNX Runtime against Torch with the same FP4 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import onnx_moe
from onnx_moe.export import with_fp4_weights
from onnx_moe.nn import SparseMoE
from onnx_moe.operators import DOMAIN
from tools.model_table.architectures import make_model

from .models import BLOCK_MODELS, DecoderLayer, moe_block

#: Of the largest of a dozen roundings in a row, each of half a unit in the last place: 2^-24 and 2^-11.
TOLERANCES = {torch.float32: 3e-6, torch.float16: 6e-3}


def _first(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _export_and_compare(
    module: torch.nn.Module, dtype: torch.dtype, path: Path, weight_layout: str = "rows", **options: Any
) -> ir.Model:
    """Exports from one size and compares at others, the empty batch among them."""
    example = torch.randn(2, 3, 64, dtype=dtype)
    dynamic_shapes = ({0: "batch", 1: "sequence"},)
    onnx_moe.export(module, (example,), path, dynamic_shapes=dynamic_shapes, weight_layout=weight_layout, **options)
    session = onnx_moe.InferenceSession(path)
    (name,) = (value.name for value in session.get_inputs())
    with with_fp4_weights(module, (example,), **options), torch.no_grad():
        for batch, tokens in ((1, 1), (3, 7), (2, 40)):
            x = torch.randn(batch, tokens, 64, dtype=dtype)
            actual = session.run(None, {name: x.numpy()})[0].astype(np.float64)
            expected = _first(module(x)).double().numpy()
            error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
            assert error <= TOLERANCES[dtype], (batch, tokens, error)
    return ir.load(path)


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain == DOMAIN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("model_type", BLOCK_MODELS)
def test_block(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(2)
    block = moe_block(make_model(model_type, dtype))
    model = _export_and_compare(block, dtype, tmp_path / "block.onnx")
    assert _operators(model) == ["MoERouter", "MoEExpertGemmFP4", "MoEExpertGemmFP4"]


@pytest.mark.parametrize("model_type", BLOCK_MODELS)
def test_decoder_layer(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    layer = DecoderLayer(make_model(model_type))
    model = _export_and_compare(layer, torch.float32, tmp_path / "layer.onnx")
    assert _operators(model) == ["MoERouter", "MoEExpertGemmFP4", "MoEExpertGemmFP4"]


@pytest.mark.parametrize("model_type", ["mixtral", "glm4_moe_lite"])
def test_decoder_layer_in_float16(model_type: str, tmp_path: Path) -> None:
    layer = DecoderLayer(make_model(model_type, torch.float16))  # which seeds for itself
    torch.manual_seed(3)  # inputs of which none is a tie between experts within float16: rounding decides those
    _export_and_compare(layer, torch.float16, tmp_path / "layer.onnx")


@pytest.mark.parametrize(
    "options", [{"format": "nvfp4"}, {"format": "fp4", "block_size": 32}, {"scale": "even"}], ids=str
)
def test_formats(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = _export_and_compare(moe_block(make_model("deepseek_v3")), torch.float32, tmp_path / "block.onnx", **options)
    gemm = next(node for node in model.graph if node.op_type == "MoEExpertGemmFP4")
    assert gemm.attributes.get_string("format", "mxfp4") == options.get("format", "mxfp4")


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("model_type", ["deepseek_v3", "gpt_oss"])
def test_interleaved_weights(model_type: str, format: str, tmp_path: Path) -> None:
    """gpt-oss interleaves the gate rows, too, and has biases: the gate rows come first then."""
    torch.manual_seed(5)
    block = moe_block(make_model(model_type))
    path = tmp_path / "block.onnx"
    model = _export_and_compare(block, torch.float32, path, weight_layout="interleaved", format=format)
    gemms = [node for node in model.graph if node.op_type == "MoEExpertGemmFP4"]
    assert [gemm.attributes.get_string("weight_layout") for gemm in gemms] == ["interleaved"] * 2


@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3"])
def test_router_logits(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(6)
    block = moe_block(make_model(model_type))
    path = tmp_path / "block.onnx"
    onnx_moe.export(block, (torch.randn(2, 3, 64),), path, router_logits=True, dynamic_shapes=({1: "tokens"},))
    session = onnx_moe.InferenceSession(path)
    assert [value.name for value in session.get_outputs()][1:] == ["gate.router_logits"]
    x = torch.randn(2, 9, 64)
    _, logits = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    weight = block.gate.weight.detach().double().numpy()  # type: ignore[union-attr, operator]
    expected = x.double().numpy().reshape(-1, 64) @ weight.T
    error = np.linalg.norm(logits.reshape(expected.shape) - expected) / np.linalg.norm(expected)
    assert error <= TOLERANCES[torch.float32]
    plain = tmp_path / "plain.onnx"
    onnx_moe.export(block, (x,), plain)
    assert len(onnx_moe.InferenceSession(plain).get_outputs()) == 1


def test_large_weights_lie_aligned_in_a_file_of_their_own(tmp_path: Path) -> None:
    layer = SparseMoE(256, 288, 32, 2)
    path = tmp_path / "layer.onnx"
    onnx_moe.export(layer, (torch.randn(2, 256),), path)
    offsets = {
        name: value.const_value.offset or 0
        for name, value in ir.load(path).graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    assert {name.rpartition(".")[2] for name in offsets} == {"up_weights", "up_scales", "down_weights", "down_scales"}
    assert len(set(offsets.values())) == 4
    assert all(offset % 65536 == 0 for offset in offsets.values())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["layer.onnx", "layer.onnx.data"]


def test_shared_experts_can_stay_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(5)
    block = moe_block(make_model("glm4_moe_lite"))
    model = _export_and_compare(block, torch.float32, tmp_path / "block.onnx", fold_shared_experts=False)
    router = next(node for node in model.graph if node.op_type == "MoERouter")
    assert router.attributes.get_int("num_shared_experts", 0) == 0
    assert sum(node.op_type == "MatMul" for node in model.graph) == 3, "gate, up and down of the shared expert"


def test_a_bfloat16_module_is_exported_with_its_values(tmp_path: Path) -> None:
    torch.manual_seed(6)
    block = moe_block(make_model("glm4_moe_lite", torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    path = tmp_path / "block.onnx"
    onnx_moe.export(block, (torch.randn(1, 4, 64, dtype=torch.bfloat16),), path, dynamic_shapes=({1: "sequence"},))
    session = onnx_moe.InferenceSession(path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())

    x = torch.randn(1, 9, 64)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    block = block.float()
    with with_fp4_weights(block, (x,)), torch.no_grad():
        expected = block(x).numpy()
    assert np.linalg.norm(y - expected) <= TOLERANCES[torch.float32] * np.linalg.norm(expected)


class _Scaled(torch.nn.Module):
    """With a buffer as transformers loads those of one element: a view of another tensor."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("scale", torch.full((1,), 3.0, dtype=torch.bfloat16)[:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block(x) * self.scale
        return result


def test_a_bfloat16_buffer_that_is_a_view(tmp_path: Path) -> None:
    torch.manual_seed(7)
    block = moe_block(make_model("mixtral", torch.bfloat16))
    module = _Scaled(block)
    scale = module.scale
    x = torch.randn(1, 4, 64, dtype=torch.bfloat16)
    results = []
    for name, one in (("scaled", module), ("block", block)):
        onnx_moe.export(one, (x,), tmp_path / f"{name}.onnx", dynamic_shapes=({1: "sequence"},))
        session = onnx_moe.InferenceSession(tmp_path / f"{name}.onnx")
        results.append(session.run(None, {session.get_inputs()[0].name: x.float().numpy()})[0])
    assert module.scale is scale
    assert scale.dtype == torch.bfloat16
    np.testing.assert_allclose(results[0], 3 * results[1], rtol=1e-6)
