"""Routers that know the next one's matrix: what they are told, and that it changes no output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import onnx_moe
from onnx_moe.errors import InvalidInputError
from onnx_moe.nn import SparseMoE
from onnx_moe.operators import BLOCK, ROUTER
from onnx_moe.reference.router import router


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(SparseMoE(64, 96, num_experts=8 + layer, top_k=2) for layer in range(3)))
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    onnx_moe.export(layers, (torch.randn(5, 64),), path)
    return path


def nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def without_next_gates(path: Path) -> ir.Model:
    model = ir.load(path)
    onnx_moe.strip_functions(model)
    for node in nodes(model, ROUTER):
        node.resize_inputs(min(len(node.inputs), 4))
    return model


def run(model: ir.Model, path: Path) -> bytes:
    ir.save(model, path, external_data=f"{path.name}.data")
    session = onnx_moe.InferenceSession(path)
    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    output: bytes = session.run(None, {session.get_inputs()[0].name: rows})[0].tobytes()
    return output


def test_a_router_is_told_the_next_ones_matrix(exported: Path, tmp_path: Path) -> None:
    model = ir.load(exported)
    routers = nodes(model, ROUTER)
    assert routers[0].inputs[4] is routers[1].inputs[1]
    assert routers[1].inputs[4] is routers[2].inputs[1]
    assert all(value is None for value in routers[2].inputs[4:])
    expected = run(without_next_gates(exported), tmp_path / "without.onnx")
    assert run(model, tmp_path / "with.onnx") == expected

    model = ir.load(exported)
    assert onnx_moe.fuse(model) == 3
    blocks = nodes(model, BLOCK)
    assert blocks[0].inputs[12] is blocks[1].inputs[1]
    assert run(model, tmp_path / "fused.onnx") == expected


def test_models_can_be_told_later(exported: Path) -> None:
    model = without_next_gates(exported)
    assert onnx_moe.add_next_gates(model) == 2
    routers = nodes(model, ROUTER)
    assert routers[0].inputs[4] is routers[1].inputs[1]
    model = without_next_gates(exported)
    assert onnx_moe.fuse(model) == 3
    assert onnx_moe.add_next_gates(model) == 2
    blocks = nodes(model, BLOCK)
    assert blocks[1].inputs[12] is blocks[2].inputs[1]


def test_what_a_router_of_logits_is_told_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="without gate_weight the router gets logits"):
        router(torch.randn(3, 8), next_gate_weight=torch.randn(4, 8), top_k=2)
    with pytest.raises(InvalidInputError, match=r"next_gate_weight has shape \[4, 7\]"):
        router(torch.randn(3, 8), torch.randn(5, 8), next_gate_weight=torch.randn(4, 7), top_k=2)
