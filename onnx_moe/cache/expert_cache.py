"""A cache of the caller's own arrays: tiles of experts, such as decoded ones, that are made when they are asked for."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from onnx_moe.cache.budgeted import BudgetedCache
from onnx_moe.cache.ids import check_number, routing_rows
from onnx_moe.cache.statistics import LayerStats
from onnx_moe.cache.store import Bank
from onnx_moe.cache.tiles import TileKey
from onnx_moe.errors import InvalidInputError

if TYPE_CHECKING:
    from onnx_moe.dispatch.grouping import Array

#: Tiles that a call of `prefetch_expert_tiles` makes, and those that may wait for later calls.
PREFETCH_BATCH, PREFETCH_QUEUE = 8, 1024
#: Recent activations per batch from which an expert is worth prefetching.
_CANDIDATE_RATE = 0.01


class ExpertCache(BudgetedCache[TileKey]):
    """Tiles by (layer, expert, tile), within a budget; safe to use from any number of threads.

    The arrays are the caller's, of numpy, Torch or whatever has `nbytes`. Which of them leave, the plugin's own
    policies decide: `policy` is "lru" or "decayed-lfu", which keeps tiles of experts that `record_expert_activation`
    saw often (decay: of a use, for each later call of its layer). cache_size_mb: MiB, fractions too. prefetch_k:
    experts that `get_prefetch_candidates` names. Raises InvalidInputError for sizes out of range.

    The experts of an ONNX Runtime session have a cache of their own, `engine`, which reads like this one.
    """

    _config = ("num_experts", "num_layers", "tile_shape", "enable_prefetch", "prefetch_k", "policy")

    def __init__(
        self,
        num_experts: int,
        num_layers: int,
        cache_size_mb: float = 512,
        tile_shape: tuple[int, int] = (64, 64),
        enable_prefetch: bool = True,
        prefetch_k: int = 4,
        *,
        policy: str = "lru",
        decay: float = 0.95,
    ) -> None:
        for name, value in (("num_experts", num_experts), ("num_layers", num_layers), ("prefetch_k", prefetch_k)):
            if value < 1:
                raise InvalidInputError(f"{name} is {value}, but must be at least 1.")
        self.num_experts = num_experts
        self.tile_shape = tile_shape
        self.enable_prefetch = enable_prefetch
        self.prefetch_k = prefetch_k
        super().__init__(Bank(num_layers, num_experts, self._locate), cache_size_mb, policy, decay)
        self._queue: deque[tuple[TileKey, Callable[[int], Array]]] = deque()
        self._queue_lock = threading.Lock()

    def _locate(self, key: TileKey) -> tuple[int, int]:
        check_number("layer_idx", key.layer_idx, self.num_layers)
        check_number("expert_id", key.expert_id, self.num_experts)
        if key.tile_idx < 0:
            raise InvalidInputError(f"tile_idx is {key.tile_idx}, but must be 0 or more.")
        return key.layer_idx, key.expert_id

    def get_expert_tile(self, layer_idx: int, expert_id: int, tile_idx: int, make_fn: Callable[[], Array]) -> Any:
        """The cached tile, or what make_fn() returns, which is kept unless it is larger than the whole budget.

        Of several threads that ask at once, one calls make_fn; what it raises goes to its caller as it is, and to the
        others as OnnxMoeError. Raises InvalidInputError for numbers out of range, or an object without a size.
        """
        return self._store.get_or_make(TileKey(layer_idx, expert_id, tile_idx), make_fn)

    def lease_expert_tile(
        self, layer_idx: int, expert_id: int, tile_idx: int, make_fn: Callable[[], Array]
    ) -> AbstractContextManager[Any]:
        """`get_expert_tile` for the length of a with block, in which the tile does not leave the cache."""
        return self._store.lease(TileKey(layer_idx, expert_id, tile_idx), make_fn)

    def prefetch_expert_tiles(
        self, layer_idx: int, expert_id: int, tile_indices: list[int], make_fn: Callable[[int], Array]
    ) -> int:
        """Queues tiles that are absent, and makes the first 8 that wait, here and now: how many it made.

        make_fn(tile_idx) makes one; what it raises passes through, and the tiles behind it go on waiting for later
        calls, with what their own call gave. Does nothing with enable_prefetch=False. Raises InvalidInputError when
        more than 1024 tiles would wait.
        """
        if not self.enable_prefetch:
            return 0
        keys = [TileKey(layer_idx, expert_id, tile_idx) for tile_idx in tile_indices]
        for key in keys:
            self._locate(key)
        with self._queue_lock:
            waiting = {key for key, _ in self._queue}
            new = [key for key in dict.fromkeys(keys) if key not in waiting and key not in self._store]
            if len(self._queue) + len(new) > PREFETCH_QUEUE:
                raise InvalidInputError(
                    f"{len(new)} more tiles of expert {expert_id} of layer {layer_idx} do not fit into the queue of "
                    f"{PREFETCH_QUEUE}, where {len(self._queue)} wait: prefetch fewer at a time, or call again with an "
                    "empty list to make those."
                )
            self._queue.extend((key, make_fn) for key in new)
            batch = [self._queue.popleft() for _ in range(min(PREFETCH_BATCH, len(self._queue)))]
        made = 0
        try:
            while batch:
                key, make = batch.pop(0)
                made += self._store.prefetch(key, functools.partial(make, key.tile_idx))
        finally:
            with self._queue_lock:
                self._queue.extendleft(reversed(batch))
        return made

    @property
    def num_queued(self) -> int:
        """Tiles that wait to be prefetched."""
        return len(self._queue)

    def record_expert_activation(self, layer_idx: int, expert_ids: Any) -> None:
        """A call of a layer chose expert_ids [T, k] (or [k]): integers as numpy, Torch or lists.

        Raises InvalidInputError for another shape or type, or an id out of range.
        """
        check_number("layer_idx", layer_idx, self.num_layers)
        self._store.routed(layer_idx, routing_rows(expert_ids, self.num_experts))

    def get_layer_stats(self, layer_idx: int) -> LayerStats:
        """The layer's statistics, live."""
        check_number("layer_idx", layer_idx, self.num_layers)
        return self._store.layers[layer_idx]

    def get_prefetch_candidates(self, layer_idx: int) -> list[int]:
        """At most prefetch_k experts of the layer, the most active in recent batches first."""
        return self.get_layer_stats(layer_idx).get_hot_experts(threshold=_CANDIDATE_RATE, top_k=self.prefetch_k)

    def invalidate_expert(self, layer_idx: int, expert_id: int) -> int:
        """Drops the expert's tiles, also those that are being made or wait to be; how many were there."""
        self._locate(TileKey(layer_idx, expert_id, 0))
        return self._invalidate(lambda key: (key.layer_idx, key.expert_id) == (layer_idx, expert_id))

    def invalidate_layer(self, layer_idx: int) -> int:
        """Drops the layer's tiles, likewise."""
        check_number("layer_idx", layer_idx, self.num_layers)
        return self._invalidate(lambda key: key.layer_idx == layer_idx)

    def clear(self) -> None:
        """Drops every tile, likewise. Statistics stay."""
        self._invalidate(lambda _: True)

    def _invalidate(self, matches: Callable[[TileKey], bool]) -> int:
        with self._queue_lock:
            self._queue = deque(waiting for waiting in self._queue if not matches(waiting[0]))
        return self._store.discard(matches)
