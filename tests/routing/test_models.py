"""The table of known models against the sizes that their publishers state."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_moe.errors import InvalidInputError
from onnx_moe.quantization import quantize
from onnx_moe.routing import KNOWN_MODELS, KnownModel, known_model

#: Parameters in all, in thousand millions, as the models' cards say.
PUBLISHED = {
    "glm-4.7-flash": 30,
    "glm-4.5": 355,
    "glm-4.5-air": 106,
    "glm-4.7": 355,
    "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 141,
    "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235,
    "qwen3-next-80b-a3b": 80,
    "qwen1.5-moe-a2.7b": 14.3,
    "deepseek-moe-16b": 16.4,
    "deepseek-v2-lite": 15.7,
    "deepseek-v2": 236,
    "deepseek-v3": 671,
    "gpt-oss-20b": 20.9,
    "gpt-oss-120b": 116.8,
    "kimi-k2": 1026,
    "olmoe-1b-7b": 6.9,
}


@pytest.mark.parametrize("model", KNOWN_MODELS, ids=lambda model: model.name)
def test_the_experts_are_most_of_the_model(model: KnownModel) -> None:
    """Attention, embeddings, dense layers and shared experts are the rest: up to a seventh."""
    share = model.routed_parameters / (1e9 * PUBLISHED[model.name])
    assert 0.86 < share < 1


def test_every_model_is_published() -> None:
    assert {model.name for model in KNOWN_MODELS} == set(PUBLISHED)


def test_glm_4_7_flash() -> None:
    model = known_model("GLM-4.7-Flash")
    assert (model.num_hidden_layers, model.num_moe_layers, model.num_experts, model.top_k) == (47, 46, 64, 4)


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4", "fp4"])
def test_bytes_of_an_expert_are_what_the_quantiser_makes(format: str) -> None:
    model = KnownModel("x", 1, 0, 8, 2, hidden_size=384, intermediate_size=256)
    shapes = [(2 * model.intermediate_size, model.hidden_size), (model.hidden_size, model.intermediate_size)]
    matrices = [quantize(np.zeros(shape, np.float32), format) for shape in shapes]
    assert model.expert_bytes(format) == sum(m.weights.nbytes + m.scales.nbytes for m in matrices)


def test_names() -> None:
    assert known_model("zai-org/GLM-4.7").num_experts == 160
    assert known_model("glm47") is known_model("glm-4.7-flash")  # section 5.5: the originals' glm47 has 64 experts
    assert known_model("mixtral") is known_model("Mixtral-8x7B")
    with pytest.raises(InvalidInputError, match="Unknown model 'kimi-k3': use one of kimi-k2"):
        known_model("kimi-k3")
    with pytest.raises(InvalidInputError, match=r"Unknown model '': use one of glm-4\.7-flash, glm-4\.5"):
        known_model("")
