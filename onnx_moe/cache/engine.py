"""The live expert cache of a session."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

import onnxruntime

from onnx_moe import _native
from onnx_moe.cache.report import Occupancy, cache_report
from onnx_moe.cache.sizes import MEBIBYTE, budget_bytes
from onnx_moe.errors import InvalidInputError
from onnx_moe.session import SESSION_NAME, config_entry


class CacheEngine:
    """What keeps a session's experts in memory, while the session lives.

    It reads and resizes as an `ExpertCache` does; its objects are experts as they lie in the model's file, which runs
    of the session look up. Each question asks the session anew, and raises OnnxMoeError when that is gone.
    """

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def statistics(self) -> dict[str, Any]:
        """Mode and reason, budget and counters so far, of all layers and of each (`layers`).

        lookups = hits + misses: distinct experts of each call. bytes_read: of the experts alone. stall_ns: calls waited
        for reads; bookkeeping_ns: all else that the cache took of calls' time. Raises OnnxMoeError when the session is
        gone.
        """
        text = ctypes.c_char_p()
        _native.check(_native.library().onnx_moe_residency(self._name, ctypes.byref(text)))
        statistics: dict[str, Any] = json.loads(text.value or b"{}")
        return statistics

    def set_budget(self, budget: int | str) -> None:
        """Another budget from now on, also while runs are under way: bytes, "4GiB", "60%" of the experts or "auto".

        Raises OnnxMoeError below what one token needs, or when the session's mode is not pool.
        """
        _native.check(_native.library().onnx_moe_set_cache_bytes(self._name, str(budget).encode()))

    def save_counters(self, path: str | os.PathLike[str]) -> None:
        """Writes how much each expert was used, in ONNX Runtime's text format of expert counters.

        A session with the entry onnx_moe.counters = `path` starts warm from it. Raises OnnxMoeError when the session's
        mode is not pool, or when the file cannot be written.
        """
        _native.check(_native.library().onnx_moe_save_counters(self._name, os.fsencode(path)))

    def resize(self, cache_size_mb: float) -> int:
        """`set_budget`, in MiB; how many experts left meanwhile, those that runs replaced included."""
        before = self.statistics()["evictions"]
        self.set_budget(budget_bytes("the cache's size", cache_size_mb))
        return int(self.statistics()["evictions"] - before)

    @property
    def cache_size_bytes(self) -> int:
        """The budget."""
        return int(self.statistics()["budget_bytes"])

    @property
    def hit_rate(self) -> float:
        """Hits / lookups; 0 without lookups."""
        return float(self.get_stats()["global"]["hit_rate"])

    @property
    def size_mb(self) -> float:
        """MiB of the slots that hold an expert."""
        return float(self.get_stats()["memory"]["size_mb"])

    @property
    def num_entries(self) -> int:
        """Experts in the cache."""
        return int(self.statistics()["resident"])

    def get_stats(self) -> dict[str, Any]:
        """{"global", "memory", "config", "per_layer"} as ExpertCache.get_stats has them; `statistics` says more."""
        of = self.statistics()
        counters = {
            "total_hits": of["hits"],
            "total_misses": of["misses"],
            "total_evictions": of["evictions"],
            "joined": of["joined"],
        }
        layers = {
            number: {
                "hit_rate": layer["hits"] / max(layer["hits"] + layer["misses"], 1),
                "cache_hits": layer["hits"],
                "cache_misses": layer["misses"],
                "num_entries": layer["resident"],
            }
            for number, layer in enumerate(of["layers"])
        }
        occupancy = Occupancy(of["resident"], of["resident"] * of["slot_bytes"], of["budget_bytes"])
        config = {"num_layers": len(of["layers"]), "policy": of["policy"], "mode": of["mode"]}
        return cache_report(counters, occupancy, config, layers)

    def __repr__(self) -> str:
        of = self.statistics()
        return (
            f"CacheEngine(mode={of['mode']}, num_layers={len(of['layers'])}, size={self.size_mb:.1f}/"
            f"{of['budget_bytes'] / MEBIBYTE:g} MiB, entries={of['resident']}, hit_rate={self.hit_rate:.1%})"
        )


def engine(session: onnxruntime.InferenceSession) -> CacheEngine:
    """The engine of a session that `onnx_moe.InferenceSession` made.

    Raises InvalidInputError for another session, whose SessionOptions lack the entry onnx_moe.session.
    """
    name = config_entry(session.get_session_options(), SESSION_NAME)
    if name is None:
        raise InvalidInputError(
            f"the session has no entry {SESSION_NAME}: create it with onnx_moe.InferenceSession, or add the entry to "
            "its SessionOptions with a name of its own."
        )
    return CacheEngine(name)
