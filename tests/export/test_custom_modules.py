"""Modules that are none of the known ones: adapters, routers and activations of other kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

import onnx_moe
from onnx_moe.errors import ExportError
from onnx_moe.export import ExpertLayer, ExportReport, Projection, RunExperts, register_adapter, with_fp4_weights
from onnx_moe.nn import Experts, Router, SparseMoE

#: A dozen roundings of float32, in either runtime.
TOLERANCE = 3e-6


def export_and_compare(module: torch.nn.Module, path: Path) -> ExportReport:
    """Exports `module`, x [B, S, 64] → the same, and compares at other sizes with Torch on the same FP4 weights."""
    example, x = torch.randn(2, 3, 64), torch.randn(3, 5, 64)
    report = onnx_moe.export(module, (example,), path, dynamic_shapes=({0: "batch", 1: "sequence"},))
    session = onnx_moe.InferenceSession(path)
    actual = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].astype(np.float64)
    with with_fp4_weights(module, (example,)), torch.no_grad():
        expected = module(x).double().numpy()
    assert np.linalg.norm(actual - expected) <= TOLERANCE * np.linalg.norm(expected)
    return report


class ProbabilityRouter(torch.nn.Module):
    """[..., H] → probabilities [..., E] (no logits), weights and ids [..., k]: leading dimensions stay."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 64) / 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        probabilities = functional.linear(x, self.weight).softmax(dim=-1)
        weights, ids = probabilities.topk(2, dim=-1)
        return probabilities, weights / weights.sum(dim=-1, keepdim=True), ids


class ExpertsOfAnyRank(Experts):
    """Experts that take [..., H] and ids [..., k]."""

    def forward(
        self, hidden_states: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        slots = expert_ids.shape[-1]
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        output = super().forward(rows, expert_ids.reshape(-1, slots), expert_weights.reshape(-1, slots))
        return output.view_as(hidden_states)


class MoEOfAnyRank(torch.nn.Module):
    """A layer that never flattens its rows, and reads the router's first output."""

    def __init__(self) -> None:
        super().__init__()
        self.router = ProbabilityRouter()
        self.experts = ExpertsOfAnyRank(64, 32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probabilities, weights, ids = self.router(x)
        output: torch.Tensor = self.experts(x, ids, weights) * probabilities.amax(dim=-1, keepdim=True)
        return output


def test_a_router_that_keeps_dimensions_and_returns_no_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export_and_compare(MoEOfAnyRank(), tmp_path / "model.onnx")
    assert report.layers[0].router == "softmax after top-k"


class RouterWithoutItsBias(torch.nn.Module):
    """A matrix in a module of its own, and a correction bias that the block holds and passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(64, 8, bias=False)
        self.route_scale = 2.5

    def forward(
        self, x: torch.Tensor, e_score_correction_bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self.gate(x)
        scores = logits.sigmoid()
        ids = (scores + e_score_correction_bias).topk(2, dim=-1).indices
        weights = scores.gather(-1, ids)
        return logits, weights / (weights.sum(dim=-1, keepdim=True) + 1e-6) * self.route_scale, ids


class MoEWithTheBias(torch.nn.Module):
    """A block as MiniMax-M2's and Trinity's."""

    def __init__(self) -> None:
        super().__init__()
        self.router = RouterWithoutItsBias()
        self.experts = Experts(64, 32, 8)
        self.bias = torch.nn.Buffer(torch.linspace(-0.5, 0.5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, 64)
        _, weights, ids = self.router(rows, self.bias)
        output: torch.Tensor = self.experts(rows, ids, weights).view_as(x)
        return output


def test_a_router_that_is_given_its_correction_bias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export_and_compare(MoEWithTheBias(), tmp_path / "model.onnx")
    assert report.layers[0].router == "sigmoid, normalized"
    node = next(node for node in ir.load(tmp_path / "model.onnx").graph if node.op_type == "MoERouter")
    assert node.attributes["scaling_factor"].as_float() == 2.5
    assert node.attributes["norm_epsilon"].as_float() == pytest.approx(1e-6)


class ClampedExperts(Experts):
    """Clamps where ordinary products never get to."""

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate.clamp(max=30.0)) * up.clamp(-30.0, 30.0)


class SoftplusExperts(Experts):
    """An activation that the operator has not."""

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.softplus(gate) * up


@pytest.mark.parametrize(("experts_class", "scale"), [(ClampedExperts, 20.0), (SoftplusExperts, 1.0)])
def test_activations_of_other_kinds(experts_class: type[Experts], scale: float, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = SparseMoE(64, 32, 8, 2)
    module.experts = experts_class(64, 32, 8)
    module.experts.gate_up_proj.data *= scale
    export_and_compare(module, tmp_path / "model.onnx")


class TwoInputs(SparseMoE):
    """A block that its shared experts cannot be probed in."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        assert residual is not None
        return super().forward(x) + residual


class Network(torch.nn.Module):
    """x → layer(x, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = TwoInputs(64, 32, 8, 2, num_shared_experts=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(x, x)
        return output


def test_shared_experts_of_an_unusual_block_stay_ordinary(tmp_path: Path) -> None:
    torch.manual_seed(2)
    assert export_and_compare(Network(), tmp_path / "model.onnx").layers[0].shared_experts == 0


class Twice(torch.nn.Module):
    """One layer that runs two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = SparseMoE(64, 32, 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(self.layer(x))
        return output


def test_a_layer_that_runs_twice(tmp_path: Path) -> None:
    torch.manual_seed(3)
    export_and_compare(Twice(), tmp_path / "model.onnx")


class MadeUpMoE(torch.nn.Module):
    """Routing and experts in one module, with a parameter of its own beside the projections."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Parameter(torch.randn(8, 64, 64) / 8)
        self.down = torch.nn.Parameter(torch.randn(8, 32, 64) / 6)  # [E, K, N]
        self.scale = torch.nn.Parameter(torch.linspace(0.5, 2.0, 64))
        self.router = Router(64, 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.run_experts, x)

    def run(self, run_experts: RunExperts, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, 64)
        weights, ids = self.router(rows)
        return (run_experts(rows, ids, weights) * self.scale).view_as(x)

    def run_experts(
        self, hidden_states: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        gate, up = torch.einsum("th,enh->ten", hidden_states, self.up).chunk(2, dim=-1)
        every = torch.einsum("tei,eih->teh", functional.relu(gate) * up, self.down)
        chosen = every.gather(1, expert_ids[..., None].expand(-1, -1, 64))
        return (chosen * expert_weights[..., None]).sum(dim=1)


def adapt(module: torch.nn.Module) -> ExpertLayer:
    assert isinstance(module, MadeUpMoE)
    activation = {"activation": "relu", "gated": 1}
    return ExpertLayer(Projection(module.up), Projection(module.down, transposed=True), activation, forward=module.run)


class MadeUpNetwork(torch.nn.Module):
    """x + moe(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.moe = MadeUpMoE()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = x + self.moe(x)
        return output


def test_adapter(tmp_path: Path) -> None:
    torch.manual_seed(4)
    register_adapter(MadeUpMoE, adapt)
    report = export_and_compare(MadeUpNetwork(), tmp_path / "model.onnx")
    assert (report.layers[0].path, report.layers[0].num_experts) == ("moe", 8)


class ListOfExperts(torch.nn.Module):
    """Experts as separate modules."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ModuleList(torch.nn.Linear(64, 32, bias=False) for _ in range(4))
        self.down = torch.nn.ModuleList(torch.nn.Linear(32, 64, bias=False) for _ in range(4))

    def forward(self, hidden_states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        every = torch.stack([down(up(hidden_states).relu()) for up, down in zip(self.up, self.down, strict=True)], 1)
        chosen = every.gather(1, ids[..., None].expand(-1, -1, 64))
        return (chosen * weights[..., None]).sum(dim=1)


def test_decoded_weights_need_parameters() -> None:
    def stack(experts: torch.nn.Module) -> ExpertLayer:
        assert isinstance(experts, ListOfExperts)
        up = torch.stack([linear.weight for linear in experts.up])
        return ExpertLayer(
            Projection(up),
            Projection(torch.stack([linear.weight for linear in experts.down])),
            {"activation": "relu"},
        )

    register_adapter(ListOfExperts, stack)
    module = SparseMoE(64, 32, 4, 2)
    module.experts = ListOfExperts()
    with (
        pytest.raises(ExportError, match="no parameter of the module"),
        with_fp4_weights(module, (torch.randn(1, 2, 64),)),
    ):
        pass
