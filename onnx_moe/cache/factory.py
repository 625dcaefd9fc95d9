"""A cache of the right size for a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_moe.cache.expert_cache import ExpertCache
from onnx_moe.errors import InvalidInputError

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_experts", "n_routed_experts")


def create_moe_cache(config: Any, cache_size_mb: float = 512, **options: Any) -> ExpertCache:
    """An ExpertCache for a model's configuration: a mapping, or an object with attributes such as a transformers one.

    Layers: num_hidden_layers, n_layer or num_layers, counted as the model counts them, dense ones too. Experts:
    num_experts, num_local_experts, n_experts or n_routed_experts, which multimodal models have in text_config.
    `options`: as ExpertCache's. Raises InvalidInputError, rather than guess, where one is missing.
    """
    return ExpertCache(
        _number(config, "experts", _EXPERTS), _number(config, "layers", _LAYERS), cache_size_mb, **options
    )


def _number(config: Any, what: str, names: tuple[str, ...]) -> int:
    for part in (config, _value(config, "text_config")):
        for name in names:
            value = _value(part, name)
            if value is not None:
                return int(value)
    raise InvalidInputError(
        f"the configuration says nowhere how many {what} the model has ({', '.join(names)}): is it a "
        "mixture-of-experts model? Otherwise make an ExpertCache with the numbers."
    )


def _value(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
