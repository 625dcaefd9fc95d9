"""The same folder under onnxruntime-genai and under `onnx_moe.generation`: the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_moe
from onnx_moe.errors import InvalidModelError
from onnx_moe.export.checkpoint.skeleton import configuration_entries
from onnx_moe.generation import ModelFolder, generate_tokens, make_genai_config, write_genai_config
from tools.model_table.architectures import ARCHITECTURES, make_config, make_model

from .counting_model import counting_model

PROMPT = [5, 7, 11, 13, 17]
NEW_TOKENS = 15

CONFIG = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "vocab_size": 11,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def genai_tokens(folder: Path) -> list[int]:
    """Greedy tokens behind PROMPT; an end-of-text token, which stops it, is the last."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel here")
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + NEW_TOKENS, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([PROMPT], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(PROMPT) :]]


@pytest.mark.parametrize("model_type", ["glm4_moe_lite", "qwen3_next", "nemotron_h", "lfm2_moe"])
def test_the_same_greedy_tokens(model_type: str, tmp_path: Path) -> None:
    """Of models with latent attention, a gated delta rule, Mamba, and convolutions alone beside attention."""
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel here")
    model = make_model(model_type)
    onnx_moe.export(model, None, tmp_path / "model.onnx")
    model.config.to_json_file(tmp_path / "config.json")
    write_genai_config(tmp_path)
    expected = list(generate_tokens(ModelFolder(tmp_path).open(), PROMPT, NEW_TOKENS))
    actual = genai_tokens(tmp_path)
    assert actual == expected[: len(actual)]
    assert len(actual) == NEW_TOKENS or actual[-1] == 2


def test_content(tmp_path: Path) -> None:
    onnx.save(counting_model(), tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9], "do_sample": True}))
    content = json.loads(write_genai_config(tmp_path).read_text())
    decoder = content["model"]["decoder"]
    assert (tmp_path / decoder["session_options"]["custom_ops_library"]).is_file()
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (1, 1, 1)
    assert decoder["inputs"]["past_key_names"] == "past_key_values.%d.key"
    assert decoder["outputs"]["present_value_names"] == "present.%d.value"
    assert "layer_types" not in decoder
    assert content["model"]["eos_token_id"] == [2, 9]
    assert content["model"]["pad_token_id"] == 2
    assert content["search"]["do_sample"] is True


def renamed(**names: str) -> ir.Model:
    """The counting model with other names for its inputs."""
    model = ir.from_proto(counting_model())
    for value in model.graph.inputs:
        value.name = names.get(value.name.replace(".", "_"), value.name)
    return model


def test_states_beside_attention() -> None:
    model = renamed(past_key_values_0_value="past_key_values.0.conv_state")
    model.graph.inputs[2].name = "past_key_values.1.key"
    decoder = make_genai_config(model, CONFIG, {}, "plugin.so")["model"]["decoder"]
    assert decoder["layer_types"] == ["linear_attention", "full_attention"]
    assert decoder["inputs"]["past_conv_names"] == "past_key_values.%d.conv_state"


def test_what_genai_cannot_keep() -> None:
    model = renamed(past_key_values_0_value="past_key_values.0.indexer_key")
    with pytest.raises(InvalidModelError, match="keeps no indexer_key, which layer 0"):
        make_genai_config(model, CONFIG, {}, "plugin.so")
    only_states = renamed(
        past_key_values_0_key="past_key_values.0.conv_state",
        past_key_values_0_value="past_key_values.0.recurrent_state",
    )
    with pytest.raises(InvalidModelError, match="needs a layer of attention"):
        make_genai_config(only_states, CONFIG, {}, "plugin.so")
    recurrent = renamed(past_key_values_0_value="past_key_values.1.recurrent_state")  # MiniMax-Text-01
    with pytest.raises(InvalidModelError, match=r"beside those of convolutions, which layer 1 .* does not have"):
        make_genai_config(recurrent, CONFIG, {}, "plugin.so")


def test_a_configuration_without_sizes() -> None:
    model = ir.from_proto(counting_model())
    with pytest.raises(InvalidModelError, match=r"configuration has no hidden_size, which genai_config\.json holds"):
        make_genai_config(model, {**CONFIG, "hidden_size": None}, {}, "plugin.so")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_has_what_it_takes(model_type: str) -> None:
    """Also those with names of their own, such as DBRX's d_model."""
    entries = configuration_entries(make_config(ARCHITECTURES[model_type]))
    model = make_genai_config(ir.from_proto(counting_model()), entries, {}, "plugin.so")["model"]
    assert (model["decoder"]["hidden_size"], model["vocab_size"]) == (64, 97)
    # JetMoE has each head for each of the chosen experts.
    assert model["decoder"]["num_attention_heads"] == (8 if model_type == "jetmoe" else 4)
