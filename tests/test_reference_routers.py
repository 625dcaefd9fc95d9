"""The reference router against the routers of transformers themselves."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from onnx_moe.reference import router

HIDDEN_SIZE = 64
NUM_EXPERTS = 16
TOP_K = 3
ROWS = 200


@dataclass(frozen=True)
class Family:
    """A router of transformers, and the attributes of MoERouter that say the same.

    correction: the path of its correction bias in the module; "argument" where forward takes it.
    """

    module: str
    router: str
    config: str
    options: dict[str, Any]
    attributes: dict[str, Any]
    gate_bias: str | None = None
    correction: str | None = None


_GROUPS = {"n_routed_experts": NUM_EXPERTS, "n_group": 4, "topk_group": 2}
_GROUP_ATTRIBUTES = {"num_groups": 4, "top_k_groups": 2}
_NORMALIZED = {"normalize": 1, "norm_epsilon": 1e-20}

FAMILIES = {
    "mixtral": Family(
        "mixtral", "MixtralTopKRouter", "MixtralConfig", {"num_local_experts": NUM_EXPERTS}, {"normalize": 1}
    ),
    "qwen3_moe": Family(
        "qwen3_moe",
        "Qwen3MoeTopKRouter",
        "Qwen3MoeConfig",
        {"num_experts": NUM_EXPERTS, "norm_topk_prob": True},
        {"normalize": 1},
    ),
    "qwen3_moe, not normalized": Family(
        "qwen3_moe",
        "Qwen3MoeTopKRouter",
        "Qwen3MoeConfig",
        {"num_experts": NUM_EXPERTS, "norm_topk_prob": False},
        {},
    ),
    "glm4_moe_lite": Family(
        "glm4_moe_lite",
        "Glm4MoeLiteTopkRouter",
        "Glm4MoeLiteConfig",
        {"n_routed_experts": NUM_EXPERTS, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8},
        {"scoring": "sigmoid", **_NORMALIZED, "scaling_factor": 1.8},
        correction="e_score_correction_bias",
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        "DeepseekV3Config",
        {**_GROUPS, "routed_scaling_factor": 2.5},
        {
            "scoring": "sigmoid",
            **_NORMALIZED,
            **_GROUP_ATTRIBUTES,
            "group_scoring": "top2_sum",
            "scaling_factor": 2.5,
        },
        correction="e_score_correction_bias",
    ),
    "gpt_oss": Family(
        "gpt_oss",
        "GptOssTopKRouter",
        "GptOssConfig",
        {"num_local_experts": NUM_EXPERTS},
        {"scoring": "softmax_after_topk"},
        gate_bias="bias",
    ),
    "ernie4_5_moe": Family(
        "ernie4_5_moe",
        "Ernie4_5_MoeTopKRouter",
        "Ernie4_5_MoeConfig",
        {"num_experts": NUM_EXPERTS, "moe_norm_min": 0.5},
        {"normalize": 1, "norm_min": 0.5},
        correction="moe_statics.e_score_correction_bias",
    ),
    "deepseek_v2": Family(
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        "DeepseekV2Config",
        {**_GROUPS, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
        {**_GROUP_ATTRIBUTES, "scaling_factor": 16.0},
    ),
    "mistral4": Family(
        "mistral4",
        "Mistral4TopkRouter",
        "Mistral4Config",
        {**_GROUPS, "norm_topk_prob": True},
        {**_NORMALIZED, **_GROUP_ATTRIBUTES, "group_scoring": "top2_sum"},
    ),
    "minimax_m2": Family(
        "minimax_m2",
        "MiniMaxM2TopKRouter",
        "MiniMaxM2Config",
        {"num_local_experts": NUM_EXPERTS},
        {"scoring": "sigmoid", "normalize": 1},
        correction="argument",
    ),
    "lfm2_moe": Family(
        "lfm2_moe",
        "Lfm2MoeTopKRouter",
        "Lfm2MoeConfig",
        {"num_experts": NUM_EXPERTS, "use_expert_bias": True, "norm_topk_prob": True},
        {"scoring": "sigmoid", "normalize": 1, "norm_epsilon": 1e-6},
        correction="argument",
    ),
    "deepseek_v4": Family(
        "deepseek_v4",
        "DeepseekV4TopKRouter",
        "DeepseekV4Config",
        {"n_routed_experts": NUM_EXPERTS, "routed_scaling_factor": 1.5},
        {"scoring": "sqrt_softplus", **_NORMALIZED, "scaling_factor": 1.5},
        correction="e_score_correction_bias",
    ),
    "granitemoe": Family(
        "granitemoe",
        "GraniteMoeTopKRouter",
        "GraniteMoeConfig",
        {"num_local_experts": NUM_EXPERTS},
        {"scoring": "softmax_after_topk"},
    ),
}


def build(family: Family, generator: torch.Generator) -> Any:
    """The family's router with random tensors."""
    config = getattr(transformers, family.config)(hidden_size=HIDDEN_SIZE, num_experts_per_tok=TOP_K, **family.options)
    module = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    built = getattr(module, family.router)(config)
    with torch.no_grad():
        for tensor in (*built.parameters(), *built.buffers()):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return built


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_router_of_transformers(family: Family) -> None:
    generator = torch.Generator().manual_seed(0)
    module = build(family, generator)
    hidden_states = torch.randn(ROWS, HIDDEN_SIZE, generator=generator)
    correction_bias = None
    arguments = []
    if family.correction == "argument":
        correction_bias = 0.3 * torch.randn(NUM_EXPERTS, generator=generator)
        arguments = [correction_bias]
    elif family.correction:
        *path, name = family.correction.split(".")
        correction_bias = getattr(module.get_submodule(".".join(path)), name).reshape(-1)

    with torch.no_grad():
        logits, weights, ids = module(hidden_states, *arguments)
        gate_bias = getattr(module, family.gate_bias) if family.gate_bias else None
        our_ids, our_weights, our_logits = router(
            hidden_states, module.weight, gate_bias, correction_bias, top_k=TOP_K, **family.attributes
        )

    torch.testing.assert_close(our_logits, logits, rtol=1e-6, atol=1e-6)
    order, our_order = ids.argsort(-1), our_ids.argsort(-1)  # some leave the order of the chosen experts open
    assert torch.equal(our_ids.gather(-1, our_order).long(), ids.gather(-1, order))
    torch.testing.assert_close(our_weights.gather(-1, our_order), weights.gather(-1, order), rtol=4e-6, atol=0)


def test_router_of_llama4() -> None:
    """Llama 4 returns the scores of all experts, those that are not chosen being 0."""
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    generator = torch.Generator().manual_seed(0)
    config = transformers.Llama4TextConfig(
        hidden_size=HIDDEN_SIZE, num_local_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K
    )
    module = Llama4Router(config)
    hidden_states = torch.randn(ROWS, HIDDEN_SIZE, generator=generator)
    with torch.no_grad():
        module.weight.copy_(0.3 * torch.randn(module.weight.shape, generator=generator))
        scores, _ = module(hidden_states)
        ids, weights, _ = router(hidden_states, module.weight, top_k=TOP_K, scoring="sigmoid_after_topk")
    torch.testing.assert_close(torch.zeros_like(scores).scatter(-1, ids.long(), weights), scores)
