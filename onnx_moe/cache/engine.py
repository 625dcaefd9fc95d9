"""The live expert cache of a session."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

import onnxruntime

from onnx_moe import _native
from onnx_moe.errors import InvalidInputError
from onnx_moe.session import SESSION_NAME, config_entry


class CacheEngine:
    """What keeps a session's experts in memory, while the session lives."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def statistics(self) -> dict[str, Any]:
        """Mode and reason, budget and counters so far, of all layers and of each (`layers`).

        lookups = hits + misses: distinct experts of each call. bytes_read: of the experts alone. stall_ns: calls waited
        for reads; bookkeeping_ns: calls decided what to load. Raises OnnxMoeError when the session is gone.
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
