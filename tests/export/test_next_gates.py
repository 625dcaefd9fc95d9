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


def export(folder: Path, next_gates: bool) -> Path:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(SparseMoE(64, 96, num_experts=8 + layer, top_k=2) for layer in range(3)))
    path = folder / f"{next_gates}.onnx"
    onnx_moe.export(layers, (torch.randn(5, 64),), path, next_gates=next_gates)
    return path


def run(model: Path) -> list[bytes]:
    session = onnx_moe.InferenceSession(model)
    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    return [output.tobytes() for output in session.run(None, {session.get_inputs()[0].name: rows})]


def test_a_router_is_told_the_next_ones_matrix(tmp_path: Path) -> None:
    path = export(tmp_path, next_gates=True)
    model = ir.load(path)
    routers = [node for node in model.graph if node.op_type == ROUTER]
    assert [len(node.inputs) for node in routers] == [5, 5, len(routers[2].inputs)]
    assert routers[0].inputs[4] is routers[1].inputs[1]
    assert routers[1].inputs[4] is routers[2].inputs[1]
    assert all(value is None for value in routers[2].inputs[4:])
    without = export(tmp_path, next_gates=False)
    assert run(path) == run(without)
    data = [file.with_name(f"{file.name}.data").stat().st_size for file in (path, without)]
    assert data[0] == data[1]

    assert onnx_moe.fuse(model) == 3
    blocks = [node for node in model.graph if node.op_type == BLOCK]
    assert blocks[0].inputs[12] is blocks[1].inputs[1]
    ir.save(model, tmp_path / "fused.onnx", external_data="fused.onnx.data")
    assert run(tmp_path / "fused.onnx") == run(without)


def test_fused_blocks_are_told_too(tmp_path: Path) -> None:
    model = ir.load(export(tmp_path, next_gates=False))
    assert onnx_moe.fuse(model) == 3
    assert onnx_moe.add_next_gates(model) == 2
    blocks = [node for node in model.graph if node.op_type == BLOCK]
    assert blocks[1].inputs[12] is blocks[2].inputs[1]


def test_what_a_router_of_logits_is_told_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="without gate_weight the router gets logits"):
        router(torch.randn(3, 8), next_gate_weight=torch.randn(4, 8), top_k=2)
    with pytest.raises(InvalidInputError, match=r"next_gate_weight has shape \[4, 7\]"):
        router(torch.randn(3, 8), torch.randn(5, 8), next_gate_weight=torch.randn(4, 7), top_k=2)
