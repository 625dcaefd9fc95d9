"""Small checkpoints on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

_SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 97,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def random_model(model_type: str = "qwen3_moe", dtype: torch.dtype = torch.bfloat16, **settings: Any) -> Any:
    """A model of one layer whose experts are large enough to lie outside the model file."""
    config = AutoConfig.for_model(model_type, **{**_SIZES, **settings})
    torch.manual_seed(0)
    return fill(AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval())


def fill(model: Any) -> Any:
    """`model` with random numbers in its parameters and buffers, but for its norms."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():  # buffers, too: a router's correction bias
        if "norm" not in name and tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def write_checkpoint(folder: Path, **settings: Any) -> Path:
    """A checkpoint of `random_model` in several files."""
    random_model(**settings).save_pretrained(folder, max_shard_size="200KB")
    return folder


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Changes entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Makes `tensors` the weights of the checkpoint, in one file."""
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
