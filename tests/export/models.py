"""Parts of the tiny models of tools.model_table."""

from __future__ import annotations

from typing import Any

import torch

#: Architectures whose block is `mlp`: softmax and sigmoid routers, groups, shared experts, biases, interleaved gates.
BLOCK_MODELS = ("mixtral", "qwen3_moe", "glm4_moe_lite", "deepseek_v3", "gpt_oss")


def moe_block(model: Any) -> torch.nn.Module:
    """The last layer's MoE block."""
    block: torch.nn.Module = model.model.layers[-1].mlp
    return block


class DecoderLayer(torch.nn.Module):
    """The last decoder layer under a causal mask: hidden states [B, S, H] → [B, S, H]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layer = model.model.layers[-1]
        self.rotary = model.model.rotary_emb

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        length = hidden_states.shape[1]
        positions = torch.arange(length)[None]
        mask = torch.full((length, length), torch.finfo(hidden_states.dtype).min, dtype=hidden_states.dtype)
        output = self.layer(
            hidden_states,
            attention_mask=mask.triu(1)[None, None],
            position_ids=positions,
            position_embeddings=self.rotary(hidden_states, positions),
        )
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result
