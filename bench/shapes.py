"""MoE blocks of real models, with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shape:
    """A block: num_experts gated MLPs hidden_size → intermediate_size → hidden_size, top_k of them a token."""

    name: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int

    @property
    def weights_per_expert(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size

    def operations(self, tokens: int) -> float:
        """Multiplications and additions of a call."""
        return 2.0 * tokens * self.top_k * self.weights_per_expert


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("GLM-4.7-Flash", 64, 4, 2048, 1536),
        Shape("Qwen3-30B-A3B", 128, 8, 2048, 768),
        Shape("gpt-oss-20b", 32, 4, 2880, 2880),
        Shape("Mixtral-8x7B", 8, 2, 4096, 14336),
    )
}


@dataclass(frozen=True)
class Call:
    """One call's tokens [T, H], chosen experts [T, k] and keys [T, E] by which QMoE chooses the same ones.

    Every chosen expert weighs 1 / k. A token begins with its keys: a router whose gate picks them out
    chooses the same experts, too.
    """

    x: NDArray[np.float32]
    expert_ids: NDArray[np.int32]
    keys: NDArray[np.float32]


def draw_calls(shape: Shape, tokens: int, count: int) -> list[Call]:
    """Fresh rows and choices for every call, so that experts come from memory rather than from a cache."""
    random = np.random.default_rng(tokens)
    calls = []
    for _ in range(count):
        keys = random.standard_normal((tokens, shape.num_experts), dtype=np.float32)
        ids = np.argsort(-keys, axis=1)[:, : shape.top_k].astype(np.int32)
        x = random.standard_normal((tokens, shape.hidden_size), dtype=np.float32)
        x[:, : shape.num_experts] = keys
        calls.append(Call(x, ids, keys))
    return calls


def every_expert(shape: Shape) -> Call:
    """A call that reads each expert, once but for the last token's."""
    tokens = -(-shape.num_experts // shape.top_k)
    ids = (np.arange(tokens * shape.top_k) % shape.num_experts).reshape(tokens, shape.top_k)
    keys = np.zeros((tokens, shape.num_experts), np.float32)
    np.put_along_axis(keys, ids, 1.0, axis=1)
    x = np.zeros((tokens, shape.hidden_size), np.float32)
    x[:, : shape.num_experts] = keys
    return Call(x, ids.astype(np.int32), keys)


def distinct_experts(calls: list[Call]) -> float:
    """Mean number of experts that a call reads."""
    return float(np.mean([np.unique(call.expert_ids).size for call in calls]))
