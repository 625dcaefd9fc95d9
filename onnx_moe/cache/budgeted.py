"""What a user sees of every cache."""

from __future__ import annotations

from typing import Any, Generic

from onnx_moe.cache.flights import Key
from onnx_moe.cache.report import Occupancy, cache_report, layer_report, totals
from onnx_moe.cache.sizes import MEBIBYTE, budget_bytes
from onnx_moe.cache.store import Bank, ObjectStore


class BudgetedCache(Generic[Key]):
    """Objects within a budget in MiB, and what can be asked about them. `_config`: attributes that get_stats shows."""

    _config: tuple[str, ...] = ("num_layers", "policy")

    def __init__(self, bank: Bank[Key], cache_size_mb: float, policy: str, decay: float) -> None:
        self.num_layers = bank.num_layers
        self.policy = policy
        self.cache_size_bytes = budget_bytes("the cache's size", cache_size_mb)
        self._store: ObjectStore[Key] = ObjectStore(bank, self.cache_size_bytes, policy, decay)

    def clear(self) -> None:
        """Drops every object, also what is being made. Statistics stay."""
        self._store.discard(lambda _: True)

    def resize(self, cache_size_mb: float) -> int:
        """Another budget, in MiB; how many objects left for it. Leased ones stay until their lease ends."""
        self.cache_size_bytes = budget_bytes("the cache's size", cache_size_mb)
        return self._store.resize(self.cache_size_bytes)

    @property
    def hit_rate(self) -> float:
        """Hits / lookups, of all layers; 0 without lookups."""
        return self._store.hit_rate

    @property
    def size_mb(self) -> float:
        """MiB of the objects in the cache."""
        return self._store.nbytes / MEBIBYTE

    @property
    def num_entries(self) -> int:
        """Objects in the cache."""
        return len(self._store)

    def get_stats(self) -> dict[str, Any]:
        """{"global", "memory", "config", "per_layer"}: counters, of all layers and of each by its number."""
        layers, entries, nbytes = self._store.snapshot()
        return cache_report(
            totals(layers),
            Occupancy(entries, nbytes, self.cache_size_bytes),
            {name: getattr(self, name) for name in self._config},
            {layer.layer_idx: layer_report(layer) for layer in layers},
        )

    def __repr__(self) -> str:
        config = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._config)
        return (
            f"{type(self).__name__}({config}, size={self.size_mb:.1f}/{self.cache_size_bytes / MEBIBYTE:g} MiB, "
            f"entries={self.num_entries}, hit_rate={self.hit_rate:.1%})"
        )
