"""Caches of whole experts, background loads, and the prefetcher. Section numbers are those of the specification."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onnx_moe.cache import ExpertCache
from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.prefetch import (
    AsyncExpertLoader,
    ExpertLRUCache,
    ExpertPrefetcher,
    PrefetchConfig,
    PrefetchStrategy,
    async_load_experts,
)

HALF_MB = 512 * 1024


def expert(value: int = 0, nbytes: int = HALF_MB) -> NDArray[np.uint8]:
    return np.full(nbytes, value, np.uint8)


class Gate:
    """A load that waits until it is let through."""

    def __init__(self) -> None:
        self.began, self.go_on, self.calls = threading.Event(), threading.Event(), 0

    def __call__(self) -> NDArray[np.uint8]:
        self.calls += 1
        self.began.set()
        assert self.go_on.wait(30)
        return expert(7, 8)


def test_4_7_two_experts_of_half_a_mb_fit_into_1_mb() -> None:
    cache = ExpertLRUCache(max_size_mb=1)
    for number in (1, 2, 3):
        assert cache.put(0, number, expert(number))
    assert cache.get(0, 1) is None
    assert cache.get(0, 3)[0] == 3
    assert cache.size_mb == 1.0
    assert not cache.put(0, 4, expert(4, 3 * HALF_MB)), "an expert larger than the budget is not stored"
    assert cache.num_entries == 2


def test_4_7_get_or_load_loads_once() -> None:
    cache = ExpertLRUCache()
    calls: list[int] = []

    def load() -> torch.Tensor:
        calls.append(1)
        return torch.ones(4)

    assert cache.get_or_load(0, 1, load) is cache.get_or_load(0, 1, load)
    assert len(calls) == 1
    assert cache.size_mb == 16 / 2**20


def test_4_7_invalidate_one_expert_or_a_layer() -> None:
    cache = ExpertLRUCache()
    for number in (1, 2, 3):
        cache.put(0, number, expert())
    cache.put(1, 1, expert())
    assert cache.invalidate(0, 1) == 1
    assert cache.invalidate(0, 1) == 0
    assert cache.invalidate(0) == 2
    assert cache.num_entries == 1
    cache.clear()
    assert (cache.num_entries, cache.size_mb) == (0, 0.0)


def test_4_7_hit_rate() -> None:
    cache = ExpertLRUCache()
    assert cache.hit_rate == 0.0
    cache.put(0, 1, expert())
    assert [cache.get(0, number) is None for number in (1, 1, 2)] == [False, False, True]
    assert cache.hit_rate == 2 / 3
    assert (cache.hits, cache.misses) == (2, 1)


def test_putting_an_expert_again_does_not_add_its_size_again() -> None:
    cache = ExpertLRUCache(max_size_mb=1)
    for value in range(5):
        cache.put(0, 1, expert(value))
    assert cache.size_mb == 0.5
    assert cache.get(0, 1)[0] == 4


def test_4_4_threads_live_from_start_to_stop() -> None:
    loader = AsyncExpertLoader()
    assert loader._executor is None
    loader.start()
    assert loader._executor is not None
    loader.stop()
    assert loader._executor is None
    with AsyncExpertLoader(num_threads=1) as other:
        assert other._executor is not None
    assert other._executor is None


def test_4_4_loads_land_in_the_cache() -> None:
    cache = ExpertLRUCache()
    with AsyncExpertLoader(cache) as loader:
        for number in (1, 2):
            assert loader.submit(0, number, lambda number=number: expert(number))  # type: ignore[misc]
        loader.wait_all(30)
        assert [cache.get(0, number)[0] for number in (1, 2)] == [1, 2]
        assert not loader.is_pending(0, 1)
        assert not loader.submit(0, 1, expert), "what is there is not loaded again"
    assert cache.get_stats()["global"]["prefetch_hits"] == 2


def test_4_4_what_is_pending_is_not_submitted_again() -> None:
    gate = Gate()
    with AsyncExpertLoader() as loader:
        assert loader.submit(0, 1, gate)
        assert not loader.submit(0, 1, gate)
        assert loader.is_pending(0, 1)
        gate.go_on.set()
        loader.wait_all(30)
        assert not loader.is_pending(0, 1)
    assert gate.calls == 1


def test_what_a_load_raises_reaches_the_caller_once() -> None:
    def broken() -> Any:
        raise OSError("disk")

    with AsyncExpertLoader() as loader:
        loader.submit(2, 5, broken)
        with pytest.raises(OnnxMoeError, match=r"expert 5 of layer 2 could not be loaded .*OSError: disk\. Submit it"):
            loader.wait_all(30)
        loader.wait_all(30)
        assert loader.submit(2, 5, lambda: expert(1)), "it may be tried again"
        loader.wait_all(30)
        assert loader.cache.get(2, 5)[0] == 1
        loader.submit(2, 6, broken)
        loader.submit(2, 7, broken)
        with pytest.raises(OnnxMoeError, match=r"1 other loads failed, too"):
            loader.stop()


def test_a_blocks_own_error_passes() -> None:
    def block() -> None:
        with AsyncExpertLoader() as loader:
            loader.submit(0, 0, lambda: 1 / 0)
            raise KeyError("the block's own")

    with pytest.raises(KeyError, match="the block's own"):
        block()


def test_the_queue_is_bounded() -> None:
    gate = Gate()
    with AsyncExpertLoader(num_threads=1, max_pending=2) as loader:
        assert [loader.submit(0, number, gate) for number in range(4)] == [True, True, False, False]
        assert loader.dropped == 2
        with pytest.raises(OnnxMoeError, match=r"2 of 2 loads have not ended after 0\.01 s"):
            loader.wait_all(0.01)
        gate.go_on.set()


def test_demand_overtakes_what_waits_and_joins_what_runs() -> None:
    running, waiting = Gate(), Gate()
    with AsyncExpertLoader(num_threads=1) as loader:
        loader.submit(0, 1, running)
        assert running.began.wait(30)
        loader.submit(0, 2, waiting)
        assert loader.load(0, 2, lambda: expert(2, 8))[0] == 2, "it does not wait for the load before it"
        assert waiting.calls == 0
        assert not loader.is_pending(0, 2)
        threading.Timer(0.05, running.go_on.set).start()
        assert loader.load(0, 1, lambda: expert(9, 8))[0] == 7, "it gets what the load under way brings"
    assert loader.cache.get_stats()["global"]["joined"] == 1


def test_stopping_loads_what_waits_or_cancels_it() -> None:
    for cancel, expected in ((False, 2), (True, 1)):
        gate = Gate()
        loader = AsyncExpertLoader(num_threads=1)
        loader.submit(0, 1, gate)
        assert gate.began.wait(30)
        loader.submit(0, 2, lambda: expert(2))
        threading.Timer(0.05, gate.go_on.set).start()
        loader.stop(cancel=cancel)
        assert loader.cache.num_entries == expected
        assert not loader.is_pending(0, 2)
        assert loader.submit(0, 3, lambda: expert(3)), "it starts again by itself"
        loader.stop()


def test_4_5_async_load_experts_makes_or_reuses_a_loader() -> None:
    calls: list[tuple[int, int]] = []

    def load(layer: int, number: int) -> NDArray[np.uint8]:
        calls.append((layer, number))
        return expert(number, 8)

    loader = async_load_experts(3, [1, 2], load)
    loader.wait_all(30)
    assert sorted(calls) == [(3, 1), (3, 2)]
    assert async_load_experts(3, [4], load, loader) is loader
    loader.stop()
    assert loader.cache.get(3, 4)[0] == 4


def test_4_6_what_was_used_twice_is_predicted() -> None:
    prefetcher = ExpertPrefetcher(64, 4, config=PrefetchConfig(prefetch_k=2))
    prefetcher.record_routing(0, [3, 7])
    prefetcher.record_routing(0, [3, 8])
    assert 3 in prefetcher.predict_next_experts(0)
    assert prefetcher.predict_next_experts(0) == [3, 8]


def test_4_6_a_step_predicts_at_most_k_and_loads() -> None:
    loads: list[tuple[int, int]] = []

    def load(layer: int, number: int) -> NDArray[np.uint8]:
        loads.append((layer, number))
        return expert(number, 8)

    with ExpertPrefetcher(64, 4, load, config=PrefetchConfig(prefetch_k=2)) as prefetcher:
        predicted = prefetcher.step(0, [3, 7, 9])
        prefetcher.wait_prefetch(30)
        assert len(predicted) <= 2
        assert sorted(loads) == [(0, number) for number in sorted(predicted)]
        assert prefetcher.get(0, predicted[0])[0] == predicted[0]
        assert prefetcher.cache.hits == 1


def test_4_6_statistics_have_three_parts() -> None:
    prefetcher = ExpertPrefetcher(64, 2)
    stats = prefetcher.get_stats()
    assert set(stats) == {"config", "per_layer", "summary"}
    assert stats["summary"]["prediction_accuracy"] == stats["summary"]["expert_hit_rate"] == "N/A"
    assert stats["config"] == {"strategy": "TOP_K_RECENCY", "prefetch_k": 4, "history_window": 32}
    assert prefetcher.prefetch_experts(0) == 0, "nothing is loaded without a function that loads"


def test_4_6_clearing_a_layer_leaves_the_others() -> None:
    prefetcher = ExpertPrefetcher(64, 2)
    for layer in (0, 1):
        prefetcher.record_routing(layer, [1, 2])
    prefetcher.clear_history(0)
    assert [len(prefetcher.get_history(layer)) for layer in (0, 1)] == [0, 1]
    prefetcher.clear_history()
    assert len(prefetcher.get_history(1)) == 0


def test_4_6_ten_tokens_of_two_layers_are_scored() -> None:
    prefetcher = ExpertPrefetcher(8, 2)
    rng = np.random.default_rng(0)
    for _ in range(10):
        for layer in range(2):
            prefetcher.step(layer, rng.choice(8, 2, replace=False))
    summary = prefetcher.get_stats()["summary"]
    assert summary["total_predictions"] == 18, "all but each layer's first token"
    assert prefetcher.get_stats(1)["predictions_made"] == 9


def test_a_batch_is_a_token_a_row() -> None:
    prefetcher = ExpertPrefetcher(8, 1)
    prefetcher.record_routing(0, torch.tensor([[1, 2], [1, 3], [1, 4]]))
    assert len(prefetcher.get_history(0)) == 3
    assert prefetcher.get_history(0).get_last_experts() == [1, 4]
    prefetcher.predict_next_experts(0)
    prefetcher.record_routing(0, [[1, 5], [1, 6]])
    stats = prefetcher.get_stats(0)
    assert (stats["predictions_made"], stats["recall"], stats["precision"]) == (1, "33.33%", "25.00%")


def test_loads_are_timely_late_or_wasted() -> None:
    gate = Gate()

    def load(layer: int, number: int) -> NDArray[np.uint8]:
        return gate() if number == 2 else expert(number, 8)

    config = PrefetchConfig(strategy=PrefetchStrategy.REPEAT, prefetch_k=3)
    with ExpertPrefetcher(8, 1, load, config=config) as prefetcher:
        prefetcher.step(0, [1, 2, 3])
        while prefetcher.cache.num_entries < 2:
            time.sleep(0.001)
        prefetcher.record_routing(0, [1, 2])
        gate.go_on.set()
        prefetcher.wait_prefetch(30)
        stats = prefetcher.get_stats(0)
        assert (stats["timely"], stats["late"], stats["wasted"]) == (1, 1, 1)
        assert (stats["bytes_loaded"], stats["bytes_wasted"]) == (24, 8)
        assert prefetcher.prefetch_experts(0, [1, 2]) == 0, "they are there"
        prefetcher.record_routing(0, [5])
        assert prefetcher.get_stats(0)["wasted"] == 1


def test_the_cross_layer_strategy_learns_what_follows() -> None:
    rng = np.random.default_rng(0)
    recall = {}
    for strategy in (PrefetchStrategy.CROSS_LAYER, PrefetchStrategy.TOP_K_RECENCY):
        prefetcher = ExpertPrefetcher(16, 2, config=PrefetchConfig(strategy=strategy, prefetch_k=2))
        for _ in range(300):
            first = rng.choice(16, 2, replace=False)
            prefetcher.record_routing(0, first)
            prefetcher.predict_next_experts(1)
            prefetcher.record_routing(1, (first + 5) % 16)
        recall[strategy] = float(prefetcher.get_stats(1)["recall"].rstrip("%"))
    assert recall[PrefetchStrategy.CROSS_LAYER] > 90
    assert recall[PrefetchStrategy.TOP_K_RECENCY] < 40


def test_attention_goes_through_the_prefetcher() -> None:
    prefetcher = ExpertPrefetcher(8, 1, config=PrefetchConfig(strategy=PrefetchStrategy.ATTENTION_GUIDED, prefetch_k=2))
    for number in range(3):
        prefetcher.record_routing(0, [number])
    assert prefetcher.predict_next_experts(0, np.eye(3)[0]) == [2, 0]
    with pytest.raises(InvalidInputError, match="attention_pattern is missing"):
        prefetcher.step(0, [1])


def test_threads_share_a_prefetcher() -> None:
    def load(layer: int, number: int) -> NDArray[np.int64]:
        return np.array([layer, number])

    errors: list[BaseException] = []

    def body(layer: int) -> None:
        rng = np.random.default_rng(layer)
        try:
            for _ in range(60):
                chosen = rng.choice(16, 2, replace=False)
                prefetcher.step(layer, chosen)
                for number in chosen.tolist():
                    assert prefetcher.get(layer, number).tolist() == [layer, number]
        except BaseException as error:
            errors.append(error)

    # 12 experts of 16 bytes: the layers push out each other's.
    with ExpertPrefetcher(16, 4, load, ExpertLRUCache(12 * 16 / 2**20, 4)) as prefetcher:
        threads = [threading.Thread(target=body, args=(layer,), daemon=True) for layer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a thread waits for ever"
    assert not errors
    assert prefetcher.cache.get_stats()["global"]["lookups"] == 4 * 60 * 2
    assert prefetcher.cache.num_entries <= 12
    assert prefetcher.get_stats()["summary"]["total_predictions"] == 4 * 59


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (
            lambda: ExpertLRUCache(num_layers=2).put(2, 0, expert()),
            "layer_idx is 2, but must be an integer",
        ),
        (lambda: ExpertLRUCache().get(0, -1), "expert_id is -1, but must be 0 or more"),
        (lambda: ExpertLRUCache().put(0, 1, 3.5), "a float has no nbytes"),
        (lambda: ExpertLRUCache().get_or_load(0, 1, lambda: None), "expert 1 of layer 0 was made, but a NoneType"),
        (lambda: AsyncExpertLoader(ExpertCache(8, 4)), "cache is a ExpertCache: whole experts go into an ExpertLRU"),
        (lambda: AsyncExpertLoader(num_threads=0), "num_threads is 0"),
        (lambda: ExpertPrefetcher(8, 2).step(2, [1]), "layer_idx is 2"),
        (lambda: ExpertPrefetcher(8, 2).step(0, [8]), "expert_ids holds 8 to 8"),
        (lambda: ExpertPrefetcher(8, 2, lambda *_: expert()).prefetch_experts(0, [8]), "expert_id is 8"),
        (lambda: ExpertPrefetcher(8, 2).get(0, 1), "the prefetcher has no load_fn"),
        (lambda: PrefetchConfig(prefetch_k=0), "prefetch_k is 0"),
        (lambda: PrefetchConfig(history_window=0), "history_window is 0"),
        (lambda: ExpertPrefetcher(0, 2), "num_experts is 0"),
    ],
)
def test_misuse_is_one_clear_error(misuse: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        misuse()
    assert message in str(error.value)
