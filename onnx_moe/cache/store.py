"""What the caches have in common: objects within a budget of bytes, made once each, leaving in the plugin's order."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from onnx_moe._native_objects import ObjectOrder
from onnx_moe.cache.flights import Flight, Flights, Key
from onnx_moe.cache.sizes import nbytes_of
from onnx_moe.cache.statistics import LayerStats
from onnx_moe.errors import InvalidInputError

#: Policies of a cache of objects: Belady's needs the future.
POLICIES = ("lru", "decayed-lfu")


@dataclass
class CacheEntry(Generic[Key]):
    """An object in a cache. last_access: of the monotonic clock, in seconds."""

    key: Key
    data: Any
    size_bytes: int
    access_count: int = 0
    last_access: float = field(default_factory=time.monotonic)

    def touch(self) -> None:
        """Somebody got the object."""
        self.access_count += 1
        self.last_access = time.monotonic()


@dataclass(eq=False)
class _Held(Generic[Key]):
    entry: CacheEntry[Key]
    number: int  # of the native order
    speculative: bool  # prefetched, and not asked for since
    leases: int = 0


@dataclass(frozen=True)
class Bank(Generic[Key]):
    """Which objects a store is for. locate: a key's layer and expert; InvalidInputError for one out of range."""

    num_layers: int
    num_experts: int
    locate: Callable[[Key], tuple[int, int]]


class ObjectStore(Generic[Key]):
    """Objects by key, within budget_bytes; any number of threads.

    policy: one of POLICIES; decay: of a use, for each later call of its layer (decayed-lfu). `layers`: what it counts.
    """

    def __init__(self, bank: Bank[Key], budget_bytes: int, policy: str = "lru", decay: float = 0.95) -> None:
        if policy not in POLICIES:
            raise InvalidInputError(f"policy={policy!r} is unknown: use one of {', '.join(POLICIES)}.")
        self.layers = [LayerStats(layer) for layer in range(bank.num_layers)]
        self._locate = bank.locate
        self._order = ObjectOrder(bank.num_layers, bank.num_experts, budget_bytes, policy, decay)
        self._lock = threading.Lock()
        self._flights: Flights[Key] = Flights(self._lock)
        self._held: dict[Key, _Held[Key]] = {}
        self._by_number: dict[int, _Held[Key]] = {}  # those too that were discarded while leased

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    @property
    def nbytes(self) -> int:
        """Bytes of all objects; of leased ones that were discarded, until they are released."""
        return self._order.nbytes

    def get(self, key: Key) -> Any:
        """The object; None where it is absent. Counts."""
        layer = self._layer(key)
        with self._lock:
            held = self._held.get(key)
            if held is None:
                layer.cache_misses += 1
                return None
            return self._hit(held, layer)

    def get_or_make(self, key: Key, make: Callable[[], Any]) -> Any:
        """The object; where it is absent, what `make` returns, which is kept if it fits into the budget.

        Of several threads that ask at once, one calls `make`, and what it raises goes to its caller as it is; to the
        others as OnnxMoeError. Raises OnnxMoeError where `make` waits for itself.
        """
        layer = self._layer(key)
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                return self._hit(held, layer)
            layer.cache_misses += 1
            flight = self._flights.find(key)
            if flight is not None:
                self._flights.announce(flight)
                flight.speculative = False
                layer.joined += 1
            else:
                mine = self._flights.begin(key, speculative=False)
        return self._flights.join(flight) if flight is not None else self._make(mine, make)

    def prefetch(self, key: Key, make: Callable[[], Any]) -> bool:
        """Makes and keeps the object, unless it is there or being made; whether it did. What `make` raises passes."""
        self._layer(key)
        with self._lock:
            if key in self._held or self._flights.find(key) is not None:
                return False
            flight = self._flights.begin(key, speculative=True)
        self._make(flight, make)
        return True

    def put(self, key: Key, data: Any) -> bool:
        """Keeps an object, in place of one of the same key; False when it is larger than the budget allows."""
        self._layer(key)
        size = nbytes_of(data)
        with self._lock:
            self._flights.disown(lambda other: other == key)
            if key in self._held:
                self._discard(key)
            return self._insert(key, data, size, speculative=False) is not None

    @contextmanager
    def lease(self, key: Key, make: Callable[[], Any]) -> Iterator[Any]:
        """`get_or_make`, and the object stays in the cache for the length of the block, if it is kept at all."""
        data = self.get_or_make(key, make)
        with self._lock:
            held = self._held.get(key)
            if held is None or held.entry.data is not data:  # it left again between the two, or was replaced
                held = None
            else:
                self._order.lease(held.number)
                held.leases += 1
        try:
            yield data
        finally:
            if held is not None:
                with self._lock:
                    self._release(held)

    def routed(self, layer: int, rows: NDArray[np.int64]) -> None:
        """A call of `layer` chose the experts rows [T, k]: what decayed LFU and the layer's statistics go by."""
        experts, counts = np.unique(rows, return_counts=True)
        with self._lock:
            self._order.visit(layer, rows.reshape(-1))
            self.layers[layer].record_batch(dict(zip(experts.tolist(), counts.tolist(), strict=True)), len(rows))

    @property
    def hit_rate(self) -> float:
        """Hits / lookups, of all layers; 0 without lookups."""
        with self._lock:
            hits = sum(layer.cache_hits for layer in self.layers)
            lookups = hits + sum(layer.cache_misses for layer in self.layers)
        return hits / lookups if lookups else 0.0

    def snapshot(self) -> tuple[list[LayerStats], int, int]:
        """Copies of the layers' statistics, number of objects and their bytes, all of one moment."""
        with self._lock:
            return copy.deepcopy(self.layers), len(self._held), self._order.nbytes

    def discard(self, matches: Callable[[Key], bool]) -> int:
        """Drops the objects whose keys match; their number. What is being made of them will not be kept."""
        with self._lock:
            self._flights.disown(matches)
            keys = [key for key in self._held if matches(key)]
            for key in keys:
                self._discard(key)
            return len(keys)

    def resize(self, budget_bytes: int) -> int:
        """Another budget; how many objects left."""
        with self._lock:
            return self._evicted(self._order.resize(budget_bytes))

    def _layer(self, key: Key) -> LayerStats:
        return self.layers[self._locate(key)[0]]

    def _make(self, flight: Flight[Key], make: Callable[[], Any]) -> Any:
        try:
            data = make()
            try:
                size = nbytes_of(data)
            except InvalidInputError as error:
                raise InvalidInputError(f"{flight.key} was made, but {error}") from None
            with self._lock:
                if self._flights.end(flight):
                    self._insert(flight.key, data, size, flight.speculative)
        except BaseException as error:
            with self._lock:
                self._flights.end(flight)
            # An interrupt is of this thread alone.
            flight.result.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            raise
        flight.result.set_result(data)
        return data

    # All of these with the lock.

    def _hit(self, held: _Held[Key], layer: LayerStats) -> Any:
        layer.cache_hits += 1
        layer.prefetch_hits += held.speculative
        held.speculative = False
        held.entry.touch()
        self._order.use(held.number)
        return held.entry.data

    def _insert(self, key: Key, data: Any, size: int, speculative: bool) -> _Held[Key] | None:
        number, evicted = self._order.insert(*self._locate(key), size)
        self._evicted(evicted)
        if number is None:
            return None
        entry = CacheEntry(key, data, size)
        if not speculative:
            entry.touch()
        held = self._held[key] = self._by_number[number] = _Held(entry, number, speculative)
        return held

    def _evicted(self, numbers: list[int]) -> int:
        for number in numbers:
            held = self._by_number.pop(number)
            if self._held.get(held.entry.key) is held:
                del self._held[held.entry.key]
                self._layer(held.entry.key).evictions += 1
        return len(numbers)

    def _discard(self, key: Key) -> None:
        held = self._held.pop(key)
        if not held.leases:
            self._drop(held)

    def _drop(self, held: _Held[Key]) -> None:
        del self._by_number[held.number]
        self._order.erase(held.number)

    def _release(self, held: _Held[Key]) -> None:
        self._order.release(held.number)
        held.leases -= 1
        if not held.leases and self._held.get(held.entry.key) is not held:
            self._drop(held)
