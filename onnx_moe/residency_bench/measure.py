"""One session: its text, its speed, and what its cache did meanwhile."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnxruntime

from onnx_moe.cache import engine
from onnx_moe.errors import OnnxMoeError
from onnx_moe.generation import DecoderSession, generate_tokens
from onnx_moe.residency_bench import page_cache
from onnx_moe.residency_bench.model import TextModel
from onnx_moe.routing import RoutingTrace, record
from onnx_moe.session import InferenceSession

_FATAL = 4
#: The engine's refusal of a budget that is too small names the entry and what it needs.
_REFUSAL = "set onnx_moe.cache_bytes to at least "


@dataclass(frozen=True)
class Setting:
    """Of a session: budget as onnx_moe.cache_bytes, policy and prefetch signal. None of them: everything is mapped."""

    budget: str | None = None
    policy: str = ""
    prefetch: str = "off"

    def __str__(self) -> str:
        return "mapped" if self.budget is None else f"{self.budget}, {self.policy}, prefetch {self.prefetch}"

    def entries(self, direct_io: str) -> dict[str, str]:
        """Configuration entries of the session."""
        if self.budget is None:
            return {"residency": "mapped"}
        entries = {
            "residency": "pool",
            "cache_bytes": self.budget,
            "cache_policy": self.policy,
            "direct_io": direct_io,
        }
        return entries if self.prefetch == "off" else {**entries, "prefetch": self.prefetch}


@dataclass(frozen=True)
class Run:
    """How a session is driven: `warm_up` tokens, then `tokens` that count. direct_io: as onnx_moe.direct_io."""

    tokens: int = 64
    warm_up: int = 32
    threads: int = 1
    direct_io: str = "on"


@dataclass(frozen=True)
class Measurement:
    """Of the tokens that count. cached_before: share of the model's data in the page cache when the session began.

    A lookup is one distinct expert of one layer and token. read_ahead: the engine's counters of prefetching, from the
    session's beginning. refused: why the budget was; everything else is 0 then.
    """

    setting: Setting
    written: tuple[int, ...] = ()
    tokens_per_second: float = 0.0
    lookups: int = 0
    hits: int = 0
    bytes_per_token: float = 0.0
    stall_ms_per_token: float = 0.0
    budget_bytes: int = 0
    capacity: int = 0
    direct_io: bool = False
    cached_before: float = 0.0
    read_ahead: dict[str, Any] | None = None
    refused: str | None = None

    @property
    def hit_rate(self) -> float:
        """hits / lookups; 1 where nothing is looked up, because everything is there."""
        return self.hits / self.lookups if self.lookups else 1.0


def measure(model: TextModel, setting: Setting, run: Run) -> Measurement:
    """Writes text in a session of its own, whose file is not in the page cache when it begins.

    Raises OnnxMoeError for a setting that the plugin does not take, other than a budget that is too small.
    """
    page_cache.drop(model.data_files)
    cached_before = page_cache.resident_share(model.data_files)
    try:
        session = _session(model, setting, run)
        tokens = _write(session, model, run)
        written = list(itertools.islice(tokens, run.warm_up))
    except Exception as error:  # ONNX Runtime raises types of its own
        message = str(error)
        if _REFUSAL in message:
            return Measurement(setting, refused=f"needs {message.partition(_REFUSAL)[2]}")
        raise OnnxMoeError(f"{setting} does not run: {message}") from error
    before = engine(session).statistics()
    start = time.perf_counter()
    written += itertools.islice(tokens, run.tokens)
    seconds = time.perf_counter() - start
    after = engine(session).statistics()
    of = {name: after[name] - before[name] for name in ("lookups", "hits", "bytes_read", "stall_ns")}
    return Measurement(
        setting,
        tuple(written),
        run.tokens / seconds,
        of["lookups"],
        of["hits"],
        of["bytes_read"] / run.tokens,
        of["stall_ns"] / 1e6 / run.tokens,
        after["budget_bytes"],
        after["capacity"],
        after["direct_io"],
        cached_before,
        after.get("prefetch"),
    )


def _write(session: onnxruntime.InferenceSession, model: TextModel, run: Run) -> Iterator[int]:
    """The likeliest text behind the prompt, token by token."""
    return generate_tokens(DecoderSession(session), model.prompt.tolist(), run.warm_up + run.tokens)


def record_routing(model: TextModel, run: Run) -> RoutingTrace:
    """What the routers choose for the same text, shared experts left out."""
    session = _session(model, Setting(), run, trace="full")
    with record(session) as recording:
        list(_write(session, model, run))
    return recording.trace


def _session(model: TextModel, setting: Setting, run: Run, **more: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = run.threads
    options.log_severity_level = _FATAL  # what fails is told by an exception, too
    for name, value in {**setting.entries(run.direct_io), **more}.items():
        options.add_session_config_entry(f"onnx_moe.{name}", value)
    return InferenceSession(model.path, options)
