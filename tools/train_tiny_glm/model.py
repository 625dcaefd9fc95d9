"""The model: GLM-4.7-Flash's architecture at a ten-thousandth of its size."""

from __future__ import annotations

import torch
from tokenizer import CONTEXT_LENGTH
from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM
from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import Glm4MoeLiteTopkRouter


def configuration(vocabulary: int) -> Glm4MoeLiteConfig:
    """Every ratio that matters is the original's: 64 experts, top 4, one shared expert, first layer dense,
    value heads as wide as query heads, a quarter to a third of each head rotary.

    Hidden and intermediate sizes are multiples of 64, so that every FP4 block size up to 64 divides them.
    """
    return Glm4MoeLiteConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=48,
        n_routed_experts=64,
        num_experts_per_tok=4,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.8,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.04,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )


def create_model(vocabulary: int, device: torch.device) -> Glm4MoeLiteForCausalLM:
    """A fresh model with bfloat16 parameters; correction biases and rotary frequencies stay float32."""
    model = Glm4MoeLiteForCausalLM(configuration(vocabulary))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    model.config.dtype = torch.bfloat16
    torch.nn.Module.to(model, device)
    return model


def routers(model: torch.nn.Module) -> list[Glm4MoeLiteTopkRouter]:
    """The routers of all MoE layers, first layer first."""
    return [module for module in model.modules() if isinstance(module, Glm4MoeLiteTopkRouter)]
