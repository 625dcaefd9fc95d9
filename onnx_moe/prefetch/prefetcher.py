"""Recording, predicting and loading, layer by layer, beside a model that generates."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from onnx_moe._native_prediction import CrossLayerTable
from onnx_moe.cache.ids import check_number, routing_rows
from onnx_moe.cache.sizes import nbytes_of
from onnx_moe.errors import InvalidInputError
from onnx_moe.prefetch.loader import AsyncExpertLoader
from onnx_moe.prefetch.lru import ExpertLRUCache
from onnx_moe.prefetch.prediction import PrefetchStrategy, RoutingHistory, check_parameters, predict_next_experts
from onnx_moe.prefetch.statistics import PrefetchStats, summary


@dataclass(frozen=True)
class PrefetchConfig:
    """Of an ExpertPrefetcher: tokens of history, experts of a prediction, and what `predict_next_experts` takes."""

    strategy: PrefetchStrategy = PrefetchStrategy.TOP_K_RECENCY
    history_window: int = 32
    prefetch_k: int = 4
    decay_factor: float = 0.9
    min_confidence: float = 0.05
    async_threads: int = 2
    enable_stats: bool = True

    def __post_init__(self) -> None:
        check_parameters(self.prefetch_k, self.decay_factor, self.min_confidence)
        for name, value in (("history_window", self.history_window), ("async_threads", self.async_threads)):
            if value < 1:
                raise InvalidInputError(f"{name} is {value}, but must be at least 1.")


@dataclass
class _Layer:
    history: RoutingHistory
    stats: PrefetchStats
    predicted: list[int] | None = None  # for the next call
    loading: dict[int, int] | None = None  # for the next call: bytes of each expert, 0 until it is there


class ExpertPrefetcher:
    """Predicts the experts of each layer's next token and loads them in the background.

    load_fn(layer, expert) loads one; without it, predictions are made and scored, and nothing is loaded. cache: where
    loaded experts go, of its own (512 MiB) where None is given; `get` reads there. Several threads may call it, one
    layer's calls in their order. Raises InvalidInputError for numbers and ids out of range.
    """

    def __init__(
        self,
        num_experts: int,
        num_layers: int,
        load_fn: Callable[[int, int], Any] | None = None,
        cache: ExpertLRUCache | None = None,
        config: PrefetchConfig | None = None,
    ) -> None:
        for name, value in (("num_experts", num_experts), ("num_layers", num_layers)):
            if value < 1:
                raise InvalidInputError(f"{name} is {value}, but must be at least 1.")
        self.num_experts = num_experts
        self.num_layers = num_layers
        self.load_fn = load_fn
        self.config = config if config is not None else PrefetchConfig()
        self._loader = AsyncExpertLoader(
            cache if cache is not None else ExpertLRUCache(num_layers=num_layers), self.config.async_threads
        )
        self._layers = [
            _Layer(RoutingHistory(number, self.config.history_window), PrefetchStats(number))
            for number in range(num_layers)
        ]
        self._table = (
            CrossLayerTable(num_layers, num_experts) if self.config.strategy is PrefetchStrategy.CROSS_LAYER else None
        )
        self._lock = threading.Lock()

    @property
    def cache(self) -> ExpertLRUCache:
        """Where loaded experts are."""
        return self._loader.cache

    def record_routing(self, layer_idx: int, expert_ids: Any) -> None:
        """A call of a layer chose expert_ids: of a token [k], or a row for each of several [T, k].

        Each row is a token of the history. The prediction before it is scored against the call's distinct experts.
        """
        layer = self._layer(layer_idx)
        rows = routing_rows(expert_ids, self.num_experts).tolist()
        used = list(dict.fromkeys(expert for row in rows for expert in row))
        with self._lock:
            if self.config.enable_stats:
                self._score(layer, used)
            layer.predicted = layer.loading = None
        for row in rows:
            layer.history.record(row)
        if self._table is not None:
            self._table.routed(layer_idx, used)

    def _score(self, layer: _Layer, used: list[int]) -> None:
        if layer.predicted is not None:
            layer.stats.record_prediction(layer.predicted, used)
        for expert, nbytes in (layer.loading or {}).items():
            if expert not in used:
                layer.stats.wasted += 1
                layer.stats.bytes_wasted += nbytes
            elif self.cache.contains(layer.stats.layer_idx, expert):
                layer.stats.timely += 1
            else:
                layer.stats.late += 1

    def predict_next_experts(self, layer_idx: int, attention_pattern: Any = None) -> list[int]:
        """At most prefetch_k experts of the layer's next token, the likeliest first; what the next call is scored by.

        attention_pattern: as `predict_next_experts` takes it, for ATTENTION_GUIDED.
        """
        layer, config = self._layer(layer_idx), self.config
        if self._table is not None:
            predicted = self._table.predict(layer_idx, config.prefetch_k)
        else:
            predicted = predict_next_experts(
                layer.history.get_last_experts(),
                attention_pattern,
                layer.history,
                self.num_experts,
                config.strategy,
                config.prefetch_k,
                config.decay_factor,
                config.min_confidence,
            )
        with self._lock:
            layer.predicted = predicted
        return predicted

    def prefetch_experts(self, layer_idx: int, expert_ids: Iterable[int] | None = None) -> int:
        """Loads experts (None: the predicted ones) in the background; how many loads began. None without load_fn."""
        layer = self._layer(layer_idx)
        if self.load_fn is None:
            return 0
        experts = self.predict_next_experts(layer_idx) if expert_ids is None else list(expert_ids)
        for expert in experts:
            check_number("expert_id", expert, self.num_experts)
        with self._lock:
            loading = layer.loading = {} if layer.loading is None else layer.loading
        began = 0
        for expert in experts:
            with self._lock:
                known = expert in loading
                loading.setdefault(expert, 0)
            if self._loader.submit(layer_idx, expert, functools.partial(self._load, layer_idx, expert, loading)):
                began += 1
            elif not known:  # it is there, or an earlier prediction's load
                with self._lock:
                    del loading[expert]
        return began

    def _load(self, layer_idx: int, expert: int, loading: dict[int, int]) -> Any:
        assert self.load_fn is not None
        start = time.perf_counter()
        weights = self.load_fn(layer_idx, expert)
        milliseconds = 1e3 * (time.perf_counter() - start)
        nbytes = nbytes_of(weights)
        with self._lock:
            loading[expert] = nbytes
            if self.config.enable_stats:
                self._layers[layer_idx].stats.bytes_loaded += nbytes
                self._layers[layer_idx].stats.record_latency(milliseconds)
        return weights

    def step(self, layer_idx: int, expert_ids: Any, attention_pattern: Any = None) -> list[int]:
        """Records a call, predicts the next one and begins to load it: the predicted experts."""
        self.record_routing(layer_idx, expert_ids)
        predicted = self.predict_next_experts(layer_idx, attention_pattern)
        self.prefetch_experts(layer_idx, predicted)
        return predicted

    def get(self, layer_idx: int, expert_id: int) -> Any:
        """The expert, now: from the cache, from the load that is under way, or by load_fn."""
        check_number("expert_id", expert_id, self.num_experts)
        if self.load_fn is None:
            raise InvalidInputError("the prefetcher has no load_fn: give it one, to load experts.")
        self._layer(layer_idx)
        return self._loader.load(layer_idx, expert_id, functools.partial(self.load_fn, layer_idx, expert_id))

    def wait_prefetch(self, timeout: float | None = None) -> None:
        """Waits for the loads so far, as AsyncExpertLoader.wait_all does."""
        self._loader.wait_all(timeout)

    def clear_history(self, layer_idx: int | None = None) -> None:
        """Forgets what a layer, or every layer, chose. What the cross-layer table has learned stays."""
        for layer in self._layers if layer_idx is None else [self._layer(layer_idx)]:
            layer.history.clear()
            with self._lock:
                layer.predicted = layer.loading = None

    def get_history(self, layer_idx: int) -> RoutingHistory:
        """The layer's history, live."""
        return self._layer(layer_idx).history

    def get_stats(self, layer_idx: int | None = None) -> dict[str, Any]:
        """{"config", "per_layer", "summary"}, or one layer's counters."""
        with self._lock:
            if layer_idx is not None:
                return self._layer(layer_idx).stats.as_dict()
            layers = [layer.stats for layer in self._layers]
            config = self.config
            return {
                "config": {
                    "strategy": config.strategy.name,
                    "prefetch_k": config.prefetch_k,
                    "history_window": config.history_window,
                },
                "per_layer": {stats.layer_idx: stats.as_dict() for stats in layers},
                "summary": {**summary(layers), "dropped": self._loader.dropped},
            }

    def start(self) -> None:
        """Starts the loading threads; the first load does, too."""
        self._loader.start()

    def stop(self) -> None:
        """Ends the loading threads, as AsyncExpertLoader.stop does."""
        self._loader.stop()

    def _layer(self, layer_idx: int) -> _Layer:
        check_number("layer_idx", layer_idx, self.num_layers)
        return self._layers[layer_idx]

    def __enter__(self) -> ExpertPrefetcher:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loader.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        return (
            f"ExpertPrefetcher(num_experts={self.num_experts}, num_layers={self.num_layers}, "
            f"strategy={self.config.strategy.name})"
        )
