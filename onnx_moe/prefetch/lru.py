"""A cache of whole experts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from onnx_moe.cache.budgeted import BudgetedCache
from onnx_moe.cache.ids import check_number
from onnx_moe.cache.store import Bank
from onnx_moe.errors import InvalidInputError


@dataclass(frozen=True)
class ExpertKey:
    """One expert of one layer."""

    layer_idx: int
    expert_id: int

    def __str__(self) -> str:
        return f"expert {self.expert_id} of layer {self.layer_idx}"


class ExpertLRUCache(BudgetedCache[ExpertKey]):
    """Whole experts by (layer, expert) within max_size_mb MiB, least recently used first out; any number of threads.

    An expert is an array of numpy or Torch, or a sequence or mapping of them. The order is kept by the plugin's own
    policy; experts may have any number of 0 or more.
    """

    def __init__(self, max_size_mb: float = 512, num_layers: int = 28) -> None:
        if num_layers < 1:
            raise InvalidInputError(f"num_layers is {num_layers}, but must be at least 1.")
        # One policy's expert a layer: LRU goes by objects alone.
        super().__init__(Bank(num_layers, 1, self._locate), max_size_mb, "lru", 1.0)

    def _locate(self, key: ExpertKey) -> tuple[int, int]:
        check_number("layer_idx", key.layer_idx, self.num_layers)
        if key.expert_id < 0:
            raise InvalidInputError(f"expert_id is {key.expert_id}, but must be 0 or more.")
        return key.layer_idx, 0

    def get(self, layer_idx: int, expert_id: int) -> Any:
        """The expert, the most recently used one then; None where it is absent."""
        return self._store.get(ExpertKey(layer_idx, expert_id))

    def put(self, layer_idx: int, expert_id: int, weights: Any) -> bool:
        """Keeps an expert, in place of what was there; False when it is larger than the whole budget."""
        return self._store.put(ExpertKey(layer_idx, expert_id), weights)

    def get_or_load(self, layer_idx: int, expert_id: int, load_fn: Callable[[], Any]) -> Any:
        """The expert; where it is absent, what load_fn() returns, which is kept.

        Of several threads that ask at once, one calls load_fn; what it raises goes to its caller as it is, and to the
        others as OnnxMoeError.
        """
        return self._store.get_or_make(ExpertKey(layer_idx, expert_id), load_fn)

    def lease(self, layer_idx: int, expert_id: int, load_fn: Callable[[], Any]) -> AbstractContextManager[Any]:
        """`get_or_load` for the length of a with block, in which the expert does not leave the cache."""
        return self._store.lease(ExpertKey(layer_idx, expert_id), load_fn)

    def prefetch(self, layer_idx: int, expert_id: int, load_fn: Callable[[], Any]) -> bool:
        """Loads and keeps the expert unless it is there or under way; whether it did. Not counted as a lookup."""
        return self._store.prefetch(ExpertKey(layer_idx, expert_id), load_fn)

    def contains(self, layer_idx: int, expert_id: int) -> bool:
        """Whether the expert is there. Not counted as a lookup."""
        return ExpertKey(layer_idx, expert_id) in self._store

    def invalidate(self, layer_idx: int, expert_id: int | None = None) -> int:
        """Drops one expert, or all of a layer, also what is being loaded; how many were there."""
        self._locate(ExpertKey(layer_idx, 0 if expert_id is None else expert_id))
        return self._store.discard(
            lambda key: key.layer_idx == layer_idx and (expert_id is None or key.expert_id == expert_id)
        )

    @property
    def hits(self) -> int:
        """Lookups that found their expert."""
        return sum(layer.cache_hits for layer in self._store.layers)

    @property
    def misses(self) -> int:
        """Lookups that did not."""
        return sum(layer.cache_misses for layer in self._store.layers)
