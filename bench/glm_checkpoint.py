"""Checkpoints of random numbers with a real model's shapes, written without ever holding more than one tensor."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

#: Size of a file of the checkpoint, about that of the published ones.
_SHARD_BYTES = 5 << 30

#: GLM-4.7-Flash: what transformers' Glm4MoeLiteConfig has by default, with the published sizes.
GLM_FLASH: dict[str, Any] = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "dtype": "bfloat16",
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.8,
    "vocab_size": 154880,
    "tie_word_embeddings": False,
    "max_position_embeddings": 202752,
    "eos_token_id": [154820, 154827, 154829],
    "pad_token_id": 154820,
}


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    float32: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (4 if self.float32 else 2)


def write_glm_flash(folder: Path, layers: int) -> int:
    """Writes a checkpoint of GLM-4.7-Flash with `layers` layers, the first of them dense; returns its bytes."""
    folder.mkdir(parents=True)
    types = ["dense", *["sparse"] * (layers - 1)]
    config = {**GLM_FLASH, "num_hidden_layers": layers, "mlp_layer_types": types}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shards: list[list[_Tensor]] = [[]]
    for tensor in _tensors(config):
        if sum(entry.nbytes for entry in shards[-1]) + tensor.nbytes > _SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    names = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    with ThreadPoolExecutor() as pool:  # making the numbers takes longer than writing them
        written = pool.map(_write_shard, [folder / name for name in names], shards)
        list(track(written, description="writing a checkpoint", total=len(names)))
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _tensors(config: dict[str, Any]) -> Iterator[_Tensor]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield _Tensor("model.embed_tokens.weight", (vocabulary, hidden))
    for index, kind in enumerate(config["mlp_layer_types"]):
        prefix = f"model.layers.{index}."
        yield from (_Tensor(prefix + name, shape) for name, shape in _attention(config))
        if kind == "dense":
            yield from _mlp(f"{prefix}mlp.", hidden, config["intermediate_size"])
            continue
        experts, intermediate = config["n_routed_experts"], config["moe_intermediate_size"]
        yield _Tensor(f"{prefix}mlp.gate.weight", (experts, hidden))
        yield _Tensor(f"{prefix}mlp.gate.e_score_correction_bias", (experts,), float32=True)
        for expert in range(experts):
            yield from _mlp(f"{prefix}mlp.experts.{expert}.", hidden, intermediate)
        yield from _mlp(f"{prefix}mlp.shared_experts.", hidden, intermediate)
    yield _Tensor("model.norm.weight", (hidden,))
    yield _Tensor("lm_head.weight", (vocabulary, hidden))


def _mlp(prefix: str, hidden: int, intermediate: int) -> Iterator[_Tensor]:
    yield _Tensor(f"{prefix}gate_proj.weight", (intermediate, hidden))
    yield _Tensor(f"{prefix}up_proj.weight", (intermediate, hidden))
    yield _Tensor(f"{prefix}down_proj.weight", (hidden, intermediate))


def _attention(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, kv_rank, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    yield "self_attn.q_a_proj.weight", (q_rank, hidden)
    yield "self_attn.q_a_layernorm.weight", (q_rank,)
    yield "self_attn.q_b_proj.weight", (heads * (nope + rope), q_rank)
    yield "self_attn.kv_a_proj_with_mqa.weight", (kv_rank + rope, hidden)
    yield "self_attn.kv_a_layernorm.weight", (kv_rank,)
    yield "self_attn.kv_b_proj.weight", (heads * (nope + value), kv_rank)
    yield "self_attn.o_proj.weight", (hidden, heads * value)


def _write_shard(path: Path, tensors: list[_Tensor]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": "F32" if tensor.float32 else "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    numbers = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for tensor in tensors:
            file.write(_values(tensor, numbers))


def _values(tensor: _Tensor, numbers: np.random.Generator) -> memoryview:
    """Normal numbers of a size that keeps activations near 1; in bfloat16 the upper half of a float."""
    scale = tensor.shape[-1] ** -0.5 if len(tensor.shape) > 1 else 0.1
    values = numbers.standard_normal(math.prod(tensor.shape), np.float32) * np.float32(scale)
    if "norm" in tensor.name:
        values += 1
    if tensor.float32:
        return memoryview(values)
    return memoryview((values.view(np.uint32) >> 16).astype(np.uint16))
