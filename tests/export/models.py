"""Tiny random models of the architectures that the exporter is held to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 97,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "attn_implementation": "eager",
}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers, what its configuration needs, and what its export must hold."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    shared_experts: int = 0
    router: str = ""
    moe_layers: int = 2


ARCHITECTURES = {
    architecture.model_type: architecture
    for architecture in (
        Architecture("mixtral", {"num_local_experts": 8}, router="softmax after top-k"),
        Architecture(
            "qwen3_moe",
            {"num_experts": 8, "moe_intermediate_size": 32, "norm_topk_prob": False},
            router="softmax",
        ),
        Architecture(
            "glm4_moe_lite",
            {
                "n_routed_experts": 8,
                "moe_intermediate_size": 32,
                "mlp_layer_types": ["dense", "sparse"],
                "n_group": 1,
                "topk_group": 1,
                **_LATENT,
            },
            shared_experts=1,
            router="sigmoid, normalized",
            moe_layers=1,
        ),
        Architecture(
            "deepseek_v3",
            {
                "n_routed_experts": 8,
                "moe_intermediate_size": 32,
                "n_shared_experts": 2,
                "n_group": 4,
                "topk_group": 2,
                "first_k_dense_replace": 1,
                **_LATENT,
            },
            shared_experts=2,
            router="sigmoid, normalized, 4 groups",
            moe_layers=1,
        ),
        Architecture(
            "gpt_oss",
            {"num_local_experts": 8, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 6},
            router="softmax after top-k",
        ),
    )
}


def make_model(model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model with random weights that are large enough for every part to matter."""
    settings = {**_COMMON, **ARCHITECTURES[model_type].config}
    config = AutoConfig.for_model(
        model_type, **{key: value for key, value in settings.items() if key != "attn_implementation"}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=settings["attn_implementation"]).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and "norm" not in name and "rotary" not in name and "inv_freq" not in name:
            with torch.no_grad():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.02 if tensor.ndim == 1 else 0.15))
    return model.to(dtype)


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
