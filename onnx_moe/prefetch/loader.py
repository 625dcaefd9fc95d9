"""Loading experts into a cache in the background."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

from onnx_moe.errors import InvalidInputError, OnnxMoeError
from onnx_moe.prefetch.lru import ExpertKey, ExpertLRUCache

#: Loads that may wait or run at once; what is submitted beyond them is dropped: it is speculation.
MAX_PENDING = 256


class AsyncExpertLoader:
    """Threads that load experts into `cache` (of its own, 512 MiB, where None is given), first come, first served.

    Whoever needs an expert now calls `load`: a load that has begun is waited for, one that only waits is overtaken.
    What loads raise reaches the caller of the next `wait_all` or `stop`. Any number of threads may use it.
    Raises InvalidInputError for parameters out of range, or another kind of cache.
    """

    def __init__(
        self, cache: ExpertLRUCache | None = None, num_threads: int = 2, *, max_pending: int = MAX_PENDING
    ) -> None:
        if cache is not None and not isinstance(cache, ExpertLRUCache):
            raise InvalidInputError(f"cache is a {type(cache).__name__}: whole experts go into an ExpertLRUCache.")
        for name, value in (("num_threads", num_threads), ("max_pending", max_pending)):
            if value < 1:
                raise InvalidInputError(f"{name} is {value}, but must be at least 1.")
        self.cache = cache if cache is not None else ExpertLRUCache()
        self.num_threads = num_threads
        self.max_pending = max_pending
        #: Submissions that found `max_pending` loads before them.
        self.dropped = 0
        self._executor: ThreadPoolExecutor | None = None
        self._pending: dict[ExpertKey, Future[None]] = {}
        self._errors: list[tuple[ExpertKey, Exception]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the threads, unless they run."""
        with self._lock:
            self._start()

    def _start(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.num_threads, "onnx-moe expert loader")
        return self._executor

    def stop(self, *, cancel: bool = False) -> None:
        """Ends the threads once they have loaded what waits or, with `cancel`, what they have begun.

        Raises OnnxMoeError where a load failed since the last question.
        """
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=cancel)
        with self._lock:
            for key in [key for key, future in self._pending.items() if future.cancelled()]:
                del self._pending[key]
        self._raise_errors()

    def submit(self, layer_idx: int, expert_id: int, load_fn: Callable[[], Any]) -> bool:
        """Has load_fn() called in the background and its result put into the cache; whether a load was queued.

        None is for an expert that is there or under way, or when `max_pending` loads are (counted in `dropped`).
        """
        key = ExpertKey(layer_idx, expert_id)
        if self.cache.contains(layer_idx, expert_id):
            return False
        with self._lock:
            if key in self._pending:
                return False
            if len(self._pending) >= self.max_pending:
                self.dropped += 1
                return False
            self._pending[key] = self._start().submit(self._run, key, load_fn)
        return True

    def load(self, layer_idx: int, expert_id: int, load_fn: Callable[[], Any]) -> Any:
        """The expert, now: from the cache, from the load that is under way, or by calling load_fn() here."""
        self.cancel(layer_idx, expert_id)
        return self.cache.get_or_load(layer_idx, expert_id, load_fn)

    def cancel(self, layer_idx: int, expert_id: int) -> bool:
        """Takes a load that has not begun out of the queue; whether there was one."""
        key = ExpertKey(layer_idx, expert_id)
        with self._lock:
            future = self._pending.get(key)
            cancelled = future is not None and future.cancel()
            if cancelled:
                del self._pending[key]
            return cancelled

    def is_pending(self, layer_idx: int, expert_id: int) -> bool:
        """Whether a load of the expert waits or runs."""
        with self._lock:
            return ExpertKey(layer_idx, expert_id) in self._pending

    def wait_all(self, timeout: float | None = None) -> None:
        """Waits, at most `timeout` seconds, until every load so far has ended.

        Raises OnnxMoeError where one failed since the last question, or when time is up.
        """
        with self._lock:
            pending = list(self._pending.values())
        _, rest = wait(pending, timeout)
        self._raise_errors()
        if rest:
            raise OnnxMoeError(f"{len(rest)} of {len(pending)} loads have not ended after {timeout} s: wait longer.")

    def _run(self, key: ExpertKey, load_fn: Callable[[], Any]) -> None:
        error = None
        try:
            self.cache.prefetch(key.layer_idx, key.expert_id, load_fn)
        except Exception as failure:
            error = failure
        with self._lock:
            del self._pending[key]
            if error is not None:
                self._errors.append((key, error))

    def _raise_errors(self) -> None:
        with self._lock:
            errors, self._errors = self._errors, []
        if not errors:
            return
        key, error = errors[0]
        others = f" ({len(errors) - 1} other loads failed, too)" if len(errors) > 1 else ""
        raise OnnxMoeError(
            f"{key} could not be loaded in the background: {type(error).__name__}: {error}{others}. Submit it again to "
            "try again."
        ) from error

    def __enter__(self) -> AsyncExpertLoader:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop(cancel=error is not None)
        except OnnxMoeError:
            if error is None:  # otherwise the block's own error says more
                raise


def async_load_experts(
    layer_idx: int,
    expert_ids: Iterable[int],
    load_fn: Callable[[int, int], Any],
    loader: AsyncExpertLoader | None = None,
    num_threads: int = 2,
) -> AsyncExpertLoader:
    """Submits load_fn(layer_idx, expert) for each expert to `loader`, or to a new one with num_threads; returns it."""
    if loader is None:
        loader = AsyncExpertLoader(num_threads=num_threads)
    for expert_id in expert_ids:
        loader.submit(layer_idx, expert_id, functools.partial(load_fn, layer_idx, expert_id))
    return loader
