"""Adapters for experts of transformers that do not follow its convention for stacked experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onnx_moe.export.layers import ExpertLayer, Projection, RunExperts

_GATED = {"activation": "silu", "gated": 1, "gate_layout": "concatenated"}


def _adapt_llama4(module: Any) -> ExpertLayer:
    """Llama 4: sigmoid of the chosen logits, which weights the experts' input, not their output."""
    experts = module.experts

    def forward(run: RunExperts, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = hidden_states.reshape(-1, module.hidden_dim)
        ids, weights, logits = torch.ops.onnx_moe.router(
            rows, module.router.weight, None, None, None, top_k=module.top_k, scoring="sigmoid_after_topk"
        )
        slots = rows.unsqueeze(1) * weights.to(rows.dtype).unsqueeze(-1)
        return module.shared_expert(rows) + run(slots, ids, torch.ones_like(weights)), logits

    up = Projection(experts.gate_up_proj, transposed=True)
    down = Projection(experts.down_proj, transposed=True)
    return ExpertLayer(up, down, _GATED, forward=forward, router="sigmoid after top-k")


def _adapt_dbrx(module: Any) -> ExpertLayer:
    """DBRX: matrices of all experts under one another; the third is used as it is, not transposed."""
    mlp, count = module.mlp, module.num_experts

    def forward(
        run: RunExperts, hidden_states: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        return run(hidden_states.reshape(-1, module.hidden_size), expert_ids, expert_weights).view_as(hidden_states)

    up = Projection(mlp.w1, parts=(mlp.v1,), experts=count)
    down = Projection(mlp.w2, transposed=True, experts=count)
    return ExpertLayer(up, down, _GATED, forward=forward)


def _adapt_jetmoe(module: Any) -> ExpertLayer:
    """JetMoE: softmax of the chosen logits, and a bias of the whole block."""

    def forward(run: RunExperts, layer_input: torch.Tensor) -> torch.Tensor:
        rows = layer_input.reshape(-1, module.input_size)
        ids, weights, _ = torch.ops.onnx_moe.router(
            rows, module.router.layer.weight, None, None, None, top_k=module.router.top_k, scoring="softmax_after_topk"
        )
        output: torch.Tensor = run(rows, ids, weights) + module.bias
        return output.view_as(layer_input)

    up, down = Projection(module.input_linear.weight), Projection(module.output_linear.weight)
    return ExpertLayer(up, down, _GATED, forward=forward, router="softmax after top-k")


def _adapt_longcat(module: Any) -> ExpertLayer:
    """LongCat-Flash: ids behind the last expert stand for experts that return what they are given."""
    count = module.num_routed_experts

    def forward(
        run: RunExperts, hidden_states: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        computed = expert_ids < count
        output = run(hidden_states, expert_ids * computed, expert_weights * computed)
        identity = (expert_weights * ~computed).sum(dim=-1, keepdim=True)
        summed: torch.Tensor = output + hidden_states * identity.to(hidden_states.dtype)
        return summed

    up, down = Projection(module.gate_up_proj, experts=count), Projection(module.down_proj)
    return ExpertLayer(up, down, _GATED, forward=forward)


#: Class of transformers → its adapter. By name: importing all of these models would take seconds.
MODEL_ADAPTERS: dict[str, Callable[[torch.nn.Module], ExpertLayer]] = {
    "transformers.models.llama4.modeling_llama4.Llama4TextMoe": _adapt_llama4,
    "transformers.models.dbrx.modeling_dbrx.DbrxExperts": _adapt_dbrx,
    "transformers.models.jetmoe.modeling_jetmoe.JetMoeMoE": _adapt_jetmoe,
    "transformers.models.longcat_flash.modeling_longcat_flash.LongcatFlashExperts": _adapt_longcat,
}
