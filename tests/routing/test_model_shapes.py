"""Rows of the table of known models that are the defaults of transformers' configurations, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from onnx_moe.routing import known_model

#: Model → configuration, and the keys that differ from GLM's names.
DEFAULTS = {
    "glm-4.7-flash": ("Glm4MoeLiteConfig", {}),
    "glm-4.5-air": ("Glm4MoeConfig", {}),
    "mixtral-8x7b": ("MixtralConfig", {"num_experts": "num_local_experts", "intermediate_size": "intermediate_size"}),
    "qwen3-next-80b-a3b": ("Qwen3NextConfig", {"num_experts": "num_experts"}),
    "deepseek-v3": ("DeepseekV3Config", {}),
    "gpt-oss-120b": ("GptOssConfig", {"num_experts": "num_local_experts", "intermediate_size": "intermediate_size"}),
}


def found(config: Any, key: str, *others: str) -> int:
    return int(next(getattr(config, name) for name in (key, *others) if getattr(config, name, None) is not None))


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_number(name: str) -> None:
    model, (class_name, keys) = known_model(name), DEFAULTS[name]
    config = getattr(transformers, class_name)()
    assert model.num_hidden_layers == config.num_hidden_layers
    assert model.num_experts == found(config, keys.get("num_experts", "n_routed_experts"))
    assert model.top_k == config.num_experts_per_tok
    assert model.hidden_size == config.hidden_size
    assert model.intermediate_size == found(config, keys.get("intermediate_size", "moe_intermediate_size"))
    if hasattr(config, "n_shared_experts"):
        assert model.num_shared_experts == config.n_shared_experts
    if hasattr(config, "first_k_dense_replace"):
        assert model.dense_layers == config.first_k_dense_replace
    elif hasattr(config, "mlp_layer_types") and config.mlp_layer_types:
        assert model.dense_layers == list(config.mlp_layer_types).count("dense")


#: The others: num_hidden_layers, dense layers, experts, top_k, hidden size, an expert's intermediate size, shared
#: experts, as the models' files say (their names are beside the table).
FILES = {
    "glm-4.5": (92, 3, 160, 8, 5120, 1536, 1),
    "glm-4.7": (92, 3, 160, 8, 5120, 1536, 1),
    "mixtral-8x22b": (56, 0, 8, 2, 6144, 16384, 0),
    "qwen3-30b-a3b": (48, 0, 128, 8, 2048, 768, 0),
    "qwen3-235b-a22b": (94, 0, 128, 8, 4096, 1536, 0),
    "qwen1.5-moe-a2.7b": (24, 0, 60, 4, 2048, 1408, 4),
    "deepseek-moe-16b": (28, 1, 64, 6, 2048, 1408, 2),
    "deepseek-v2": (60, 1, 160, 6, 5120, 1536, 2),
    "deepseek-v2-lite": (27, 1, 64, 6, 2048, 1408, 2),
    "gpt-oss-20b": (24, 0, 32, 4, 2880, 2880, 0),
    "kimi-k2": (61, 1, 384, 8, 7168, 2048, 1),
    "olmoe-1b-7b": (16, 0, 64, 8, 2048, 1024, 0),
}


@pytest.mark.parametrize("name", FILES)
def test_the_other_rows(name: str) -> None:
    model = known_model(name)
    sizes = (model.num_hidden_layers, model.dense_layers, model.num_experts, model.top_k, model.hidden_size)
    assert (*sizes, model.intermediate_size, model.num_shared_experts) == FILES[name]
