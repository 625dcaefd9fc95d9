"""Each way to misuse the exporter: what is wrong, with which value, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import onnx_moe
from onnx_moe import OnnxMoeError
from onnx_moe.errors import ExportError, InvalidAttributeError
from onnx_moe.export.discovery import find_layers
from onnx_moe.nn import Router, SparseMoE

X = torch.randn(3, 64)


def layer(**options: Any) -> SparseMoE:
    torch.manual_seed(0)
    return SparseMoE(**{"hidden_size": 64, "intermediate_size": 32, "num_experts": 4, "top_k": 2, **options})


class SquaredRouter(Router):
    """Weights of no known family."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = super().forward(x)
        return weights**2, ids


def with_another_router() -> SparseMoE:
    module = layer()
    module.router = SquaredRouter(64, 4, 2)
    return module


def with_a_nan() -> SparseMoE:
    module = layer()
    with torch.no_grad():
        module.experts.gate_up_proj[1, 2, 3] = torch.nan
    return module


class Skips(torch.nn.Module):
    """Has an MoE layer that its inputs do not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.moe = layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "inputs", "options", "message"),
    [
        (torch.nn.Linear(4, 4), (X,), {}, r"Linear holds no MoE layer.*register_adapter"),
        (layer(), X, {}, r"example_inputs is a Tensor: pass a tuple.*\(x,\)"),
        (layer(), None, {}, r"SparseMoE is no causal language model.*pass a tuple"),
        (
            layer(),
            (torch.randn(3, 65),),
            {},
            r"SparseMoE does not run on the example inputs.*Pass inputs that it takes",
        ),
        (Skips(), (X,), {}, r"do not reach the experts 'moe.experts'"),
        (layer(), (X,), {"format": "int4"}, r"format='int4' is unknown: use one of 'mxfp4'"),
        (
            with_another_router(),
            (X,),
            {"router_logits": True},
            r"router_logits: the router of experts becomes ordinary ops \(.*leave router_logits out",
        ),
        (layer(), (X,), {"accuracy_level": 9}, r"accuracy_level=9 must be at most 4"),
        (layer(), (X,), {"block_size": 64}, r"block_size=64"),
        (layer(), (X,), {"scale": "best"}, r"experts: up projection: scale='best' is unknown"),
        (layer(), (X,), {"weight_layout": "columns"}, r"weight_layout='columns' is unknown: use one of 'rows'"),
        (layer(intermediate_size=48), (X,), {}, r"experts: down projection has K=48.*block of 32.*nvfp4: 16"),
        (with_a_nan(), (X,), {}, r"up projection: matrix \[1\] of the weights: weights hold nan at row 2, column 3"),
        (layer().to("meta"), (X.to("meta"),), {}, r"is on the meta device: load the module's weights"),
        ("layer", (X,), {}, r"module is a str: pass a torch\.nn\.Module"),
    ],
)
def test_message(module: Any, inputs: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OnnxMoeError, match=f"(?s){message}"):
        onnx_moe.export(module, inputs, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir()), "a failed export leaves nothing behind"


def test_a_path_that_is_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.bin' does not end in \.onnx"):
        onnx_moe.export(layer(), (X,), tmp_path / "model.bin")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot be written: .*Choose another folder"):
        onnx_moe.export(layer(), (X,), tmp_path / "file" / "model.onnx")


def test_a_failed_export_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    module = layer(intermediate_size=48).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ExportError):
        onnx_moe.export(module, (X,), tmp_path / "model.onnx")
    assert module.training
    assert "forward" not in module.experts.__dict__
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_layers_that_do_not_exist() -> None:
    with pytest.raises(InvalidAttributeError, match="top_k=5 must lie from 1 to num_experts=4"):
        layer(top_k=5)
    with pytest.raises(InvalidAttributeError, match="scoring='argmax' is unknown: use one of softmax"):
        layer(scoring="argmax")


def test_what_tokens_do_not_reach_is_left_out() -> None:
    """Of a decoder: of other modules it is an error, above."""
    module = torch.nn.ModuleDict({"used": layer(), "unused": Skips()})
    layers = find_layers(module, lambda: module["used"](X), True, every=False)
    assert [found.path for found in layers] == ["used.experts"]
