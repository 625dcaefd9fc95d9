"""Tiny random models of every architecture with experts that transformers knows."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from onnx_moe.export.text_model import TextModel

#: Settings of every tiny model, each where its configuration has such a field.
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 97,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers and what its tiny configuration needs beside the common settings.

    text_model: class of its folder of transformers, where the library's automatic classes know none.
    obstacle: what stands in the way of an export that fails, in words that a reader understands.
    excluded: why there is nothing to export, for a folder of transformers that holds experts but no decoder.
    """

    model_type: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    text_model: str = ""
    excluded: str = ""
    obstacle: str = ""


_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_KINDS = ("full_attention", "sliding_attention")
_HALF_SLIDING = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 6}
_HALF_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_GATED_DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_INKLING = {
    "layer_types": ["hybrid", "hybrid_sliding"],
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 16,
    "sliding_window_size": 6,
    "d_rel": 8,
    "rel_extent": 32,
    "unpadded_vocab_size": 97,
}
#: Eight heads: where all of them are negative, a score is zero, and equal scores are chosen by chance.
_INDEXER = {"index_topk": 8, "index_head_dim": 32, "index_n_heads": 8}

_LIST = (
    Architecture("afmoe", "Trinity (AFMoE)", {**_HALF_SLIDING, "num_dense_layers": 1}),
    Architecture("aria_text", "Aria", {"moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 2}),
    Architecture("axk1", "A.X K1", {"mlp_layer_types": ["dense", "sparse"]}),
    Architecture("axk2", "A.X K2", _INDEXER),
    Architecture(
        "bailing_hybrid",
        "Ling 2.5 (Bailing hybrid)",
        {**_HALF_LINEAR, "n_group": 4, "topk_group": 2, "num_mtp_layers": 0, "mlp_layer_types": ["sparse"] * 2},
    ),
    Architecture("beam", "Beam", {"mlp_layer_types": ["dense", "sparse"], "n_group": 4, "topk_group": 2}),
    Architecture("cohere2_moe", "Command A MoE", _HALF_SLIDING),
    Architecture(
        "deepseek_ocr2_text",
        "DeepSeek-OCR 2",
        {"mlp_layer_types": ["dense", "sparse"]},
        text_model="DeepseekOcr2TextModel",
    ),
    Architecture("deepseek_v2", "DeepSeek-V2", {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}),
    Architecture("deepseek_v3", "DeepSeek-V3", {"n_shared_experts": 2, "n_group": 4, "topk_group": 2}),
    Architecture("deepseek_v32", "DeepSeek-V3.2", _INDEXER),
    Architecture(
        "deepseek_v4",
        "DeepSeek-V4",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 3},
            "sliding_window": 6,
            "o_groups": 2,
            "o_lora_rank": 16,
            "index_topk": 2,
            "index_head_dim": 32,
            "index_n_heads": 8,
        },
    ),
    Architecture("diffusion_gemma_text", "Diffusion Gemma", excluded="a diffusion model writes blocks, not tokens"),
    Architecture("dots1", "dots.llm1", {"n_shared_experts": 1, "layer_types": ["full_attention"] * 2}),
    Architecture("dots3_note_text", "dots3-note"),
    Architecture("ernie4_5_moe", "ERNIE-4.5", {"moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 1}),
    Architecture(
        "ernie4_5_vl_moe_text",
        "ERNIE-4.5-VL",
        {
            "moe_num_experts": 8,
            "moe_k": 2,
            "moe_intermediate_size": [32, 32],
            "rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]},
        },
        text_model="Ernie4_5_VLMoeTextModel",
    ),
    Architecture("exaone_moe", "K-EXAONE", _HALF_SLIDING),
    Architecture("flex_olmo", "FlexOlmo"),
    Architecture("flint", "Flint", {"decoder_sparse_step": 1, "mlp_only_layers": []}),
    Architecture(
        "gemma4_text",
        "Gemma 4",
        {
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 6,
            "hidden_size_per_layer_input": 0,
        },
    ),
    Architecture("glm4_moe", "GLM-4.5, GLM-4.7"),
    Architecture("glm4_moe_lite", "GLM-4.7-Flash", {"mlp_layer_types": ["dense", "sparse"]}),
    Architecture("glm4v_moe_text", "GLM-4.5V", {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}),
    Architecture(
        "glm5_next_text",
        "GLM-5 next",
        {
            **_HALF_LINEAR,
            **_INDEXER,
            "mlp_layer_types": ["dense", "sparse"],
            "qk_rope_head_dim": 0,
            "index_kpool": 4,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
        },
    ),
    Architecture("glm_moe_dsa", "GLM-5", _INDEXER),
    Architecture("gpt_oss", "gpt-oss", _HALF_SLIDING),
    Architecture("granitemoe", "Granite-MoE"),
    Architecture("granitemoe_swa", "Granite-MoE (sliding window)", _HALF_SLIDING),
    Architecture(
        "granitemoehybrid",
        "Granite 4 (hybrid)",
        {
            **_HALF_LINEAR,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "shared_intermediate_size": 32,
        },
    ),
    Architecture("granitemoeshared", "Granite-MoE (shared)", {"shared_intermediate_size": 32}),
    Architecture("hunyuan_v1_moe", "Hunyuan V1", {"moe_topk": 2}),
    Architecture("hy_v3", "Hunyuan V3"),
    Architecture("hy_v4", "Hunyuan V4", _INDEXER),
    Architecture(
        "hy_v4_vl_text",
        "Hunyuan V4-VL",
        {**_INDEXER, "rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}},
    ),
    Architecture("inkling_text", "Inkling", {**_INKLING, "mlp_layer_types": ["dense", "sparse"]}),
    Architecture("inkling2_text", "Inkling 2", _INKLING),
    Architecture("inkling2_loop_text", "Inkling 2 loop", _INKLING),
    Architecture(
        "jamba",
        "Jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 1,
            "expert_layer_offset": 0,
            "mamba_d_state": 8,
        },
    ),
    Architecture(
        "kimi_linear",
        "Kimi Linear",
        {**_HALF_LINEAR, "linear_head_dim": 16, "linear_num_heads": 4, "mlp_layer_types": ["dense", "sparse"]},
    ),
    Architecture("kolibri1", "Kolibri 1", _HALF_SLIDING),
    Architecture("laguna", "Laguna"),
    Architecture("lara_mini", "Lara mini", {**_GATED_DELTA, "sliding_window": 6}),
    Architecture("lfm2_moe", "LFM2-MoE", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    Architecture("mellum", "Mellum"),
    Architecture(
        "mimo_v2_flash",
        "MiMo-V2-Flash",
        {
            **_HALF_SLIDING,
            "num_key_value_heads": 2,  # twice as many in sliding layers
            "head_dim": 24,  # wider than values, as in the real one
            "rope_parameters": {kind: {**_ROPE, "partial_rotary_factor": 0.5} for kind in _KINDS},
        },
    ),
    # In this order: transformers counts past tokens in the first layer, and forgets padding if that is a linear one.
    Architecture("minimax", "MiniMax-Text-01", {"layer_types": ["full_attention", "linear_attention"]}),
    Architecture("minimax_m2", "MiniMax-M2"),
    Architecture("minimax_m3_vl_text", "MiniMax-M3"),
    Architecture("mistral4", "Mistral 4", {"first_k_dense_replace": 0}),
    Architecture("mistral_large4_text", "Mistral Large 4", _INDEXER),
    Architecture("mixtral", "Mixtral"),
    Architecture(
        "muse_spark_text",
        "Muse Spark",
        {"moe_hidden_size": 64},
        obstacle="each expert's output is normalised before it is weighted, which `MoEExpertGemmFP4` does not do",
    ),
    Architecture(
        "nemotron_h",
        "Nemotron-H",
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "moe_shared_expert_intermediate_size": 32,
        },
    ),
    Architecture("olmoe", "OLMoE"),
    Architecture(
        "openai_privacy_filter",
        "OpenAI privacy filter",
        excluded="an encoder that labels tokens: there is no decoder to export",
    ),
    Architecture("phimoe", "Phi-3.5-MoE"),
    Architecture("qwen2_moe", "Qwen2-MoE"),
    Architecture("qwen3_moe", "Qwen3-MoE", {"norm_topk_prob": False}),
    Architecture("qwen3_next", "Qwen3-Next", {**_HALF_LINEAR, **_GATED_DELTA}),
    Architecture("qwen3_5_moe_text", "Qwen3.5-MoE", {**_HALF_LINEAR, **_GATED_DELTA}),
    Architecture("qwen3_omni_moe_text", "Qwen3-Omni (thinker)", text_model="Qwen3OmniMoeThinkerTextModel"),
    Architecture("qwen3_vl_moe_text", "Qwen3-VL-MoE"),
    Architecture(
        "qwen4_exp_text",
        "Qwen4-Exp",
        {
            **_HALF_LINEAR,
            **_GATED_DELTA,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 4,
            "hc_lowrank": 8,
            "ple_layer_ids": [],
        },
        obstacle="its indexer chooses blocks of keys in Python, query by query, and branches on how many there are",
    ),
    Architecture("solar_open", "Solar Open"),
    Architecture(
        "unlimited_ocr_text",
        "Unlimited-OCR",
        {"mlp_layer_types": ["dense", "sparse"]},
        text_model="UnlimitedOcrTextModel",
        obstacle="its cache keeps the prompt and a window of what follows, and counts both in Python",
    ),
    Architecture("zaya", "Zaya", {"num_experts_per_tok": 1, "router_hidden_size": 32}),
    # Not decorated with the hook of the experts: adapters.
    Architecture(
        "dbrx",
        "DBRX",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 4, "rope_theta": 10000.0, "clip_qkv": 8},
            "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2},
        },
    ),
    Architecture("jetmoe", "JetMoE", {"kv_channels": 16}),
    Architecture("llama4_text", "Llama 4"),
    Architecture(
        "longcat_flash",
        "LongCat-Flash",
        {"num_layers": 2, "ffn_hidden_size": 32, "expert_ffn_hidden_size": 32, "moe_topk": 2, "zero_expert_num": 2},
    ),
)

ARCHITECTURES = {architecture.model_type: architecture for architecture in _LIST}


def make_config(architecture: Architecture) -> Any:
    """The configuration of its tiny model."""
    kind = type(AutoConfig.for_model(architecture.model_type))
    fields = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "__dataclass_fields__", {}))
    settings = {name: value for name, value in _COMMON.items() if name in fields}
    return kind(**{**settings, **architecture.config})


def make_model(model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    """A decoder with random weights that are large enough for every part to matter."""
    config = make_config(ARCHITECTURES[model_type])
    torch.manual_seed(0)
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model = AutoModelForCausalLM.from_config(config)
    else:  # the text model of a multimodal one
        head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        model = TextModel(_make_text_model(ARCHITECTURES[model_type], config), head)
    model = model.eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if _is_random(name, tensor):
            with torch.no_grad():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.02 if tensor.ndim == 1 else 0.15))
        elif name.endswith("tid2eid"):  # experts of a token, chosen by its id alone
            tensor.copy_(torch.rand(tensor.shape[0], 8, generator=generator).argsort(dim=1)[:, : tensor.shape[1]])
    return model.to(dtype)


def _make_text_model(architecture: Architecture, config: Any) -> torch.nn.Module:
    if not architecture.text_model:
        return AutoModel.from_config(config)  # type: ignore[no-any-return]
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    return getattr(module, architecture.text_model)(config)  # type: ignore[no-any-return]


#: Parts of names whose values follow from the configuration, or that are scales around one.
_KEPT = ("norm", "rotary", "inv_freq", "A_log", "dt_bias", "embed_positions", "slope", "decay")


def _is_random(name: str, tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and not any(part in name for part in _KEPT)
