"""Single flight: of the threads that want the same thing at once, one makes it and the others wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from onnx_moe.errors import OnnxMoeError

Key = TypeVar("Key", bound=Hashable)


@dataclass(eq=False)
class Flight(Generic[Key]):
    """Somebody makes `key`."""

    key: Key
    speculative: bool
    owner: int = field(default_factory=threading.get_ident)
    result: Future[Any] = field(default_factory=Future)


class Flights(Generic[Key]):
    """The flights under way. All methods but `join` are called with the lock of whoever has them."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._flights: dict[Key, Flight[Key]] = {}
        self._waiting: dict[int, Flight[Key]] = {}  # by thread

    def find(self, key: Key) -> Flight[Key] | None:
        """The flight that makes `key`."""
        return self._flights.get(key)

    def begin(self, key: Key, speculative: bool) -> Flight[Key]:
        """The calling thread is going to make `key`."""
        flight = self._flights[key] = Flight(key, speculative)
        return flight

    def end(self, flight: Flight[Key]) -> bool:
        """Ends a flight; whether its result is still wanted in the cache."""
        wanted = self._flights.get(flight.key) is flight
        if wanted:
            del self._flights[flight.key]
        return wanted

    def disown(self, matches: Callable[[Key], bool]) -> None:
        """What is being made of these keys is out of date: who waits gets it, the cache does not."""
        for key in [key for key in self._flights if matches(key)]:
            del self._flights[key]

    def announce(self, flight: Flight[Key]) -> None:
        """The calling thread is going to `join`. Raises OnnxMoeError where that would never end."""
        me = threading.get_ident()
        awaited: Flight[Key] | None = flight
        while awaited is not None:
            if awaited.owner == me:
                raise OnnxMoeError(
                    f"{flight.key} is wanted by a function that {flight.key} waits for: the loading functions of "
                    "experts must not ask the cache for each other's."
                )
            awaited = self._waiting.get(awaited.owner)
        self._waiting[me] = flight

    def join(self, flight: Flight[Key]) -> Any:
        """What the flight makes, once it is there; OnnxMoeError where it fails. `announce` it first."""
        try:
            return flight.result.result()
        except Exception as error:
            raise OnnxMoeError(
                f"{flight.key} could not be made in another thread: {type(error).__name__}: {error}. Ask again to try "
                "again."
            ) from error
        finally:
            with self._lock:
                self._waiting.pop(threading.get_ident(), None)
