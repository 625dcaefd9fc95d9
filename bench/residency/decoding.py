"""One session that decodes, in a process of its own: python -m bench.residency.decoding, its job as JSON on stdin."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """A session's entries, and how it is driven: warm_up tokens, then `rounds` of `tokens`, the disk measured between.

    spin: threads that compute look for work without a pause, as ONNX Runtime does by default. group: a control group to
    join first.
    """

    model: str
    shape: dict[str, int]
    layers: int
    entries: dict[str, str]
    tokens: int
    warm_up: int
    rounds: int
    threads: int
    spin: bool
    disk_seconds: float
    group: str | None = None

    def to_json(self) -> str:
        """For the process that does it."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True)
class Round:
    """disk: bytes a second before and after it. counters: the engine's, of these tokens alone."""

    seconds: float
    disk: tuple[float, float]
    counters: dict[str, int]


@dataclass(frozen=True)
class Decoded:
    """statistics: the engine's at the end. own_bytes: the process's memory before it had a session."""

    rounds: list[Round]
    statistics: dict[str, Any]
    own_bytes: int


#: Counters of the engine that rounds have differences of, those of reading ahead too.
_COUNTERS = ("calls", "lookups", "hits", "misses", "bytes_read", "stall_ns", "bookkeeping_ns")
_AHEAD = ("timely", "late", "wasted", "correct", "used")


def _counters(statistics: dict[str, Any]) -> dict[str, int]:
    ahead = statistics.get("prefetch", {})
    return {name: statistics[name] for name in _COUNTERS} | {name: ahead.get(name, 0) for name in _AHEAD}


def decode(job: Job) -> Decoded:
    """Does the job."""
    if job.group:
        Path(job.group, "cgroup.procs").write_text(str(os.getpid()))
    # After the group was joined: the process's own memory counts there, too.
    import onnxruntime

    import onnx_moe
    from bench.residency.disk import bandwidth, find_parts
    from bench.residency.memory import resident_bytes
    from bench.residency.model import Shape, draw_tokens
    from onnx_moe.cache import engine

    shape, path = Shape(**job.shape), Path(job.model)
    parts = find_parts(path, shape)
    own_bytes = resident_bytes(os.getpid())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(job.spin)))
    for name, value in job.entries.items():
        options.add_session_config_entry(f"onnx_moe.{name}", value)
    session = onnx_moe.InferenceSession(path, options)
    tokens = draw_tokens(job.layers, shape.hidden, seed=1)

    def run(count: int) -> None:
        for feeds in itertools.islice(tokens, count):
            session.run(None, feeds)

    def disk() -> float:
        return bandwidth(path.with_suffix(".data"), parts, job.disk_seconds) if job.disk_seconds else 0.0

    run(job.warm_up)
    rounds = _rounds(job, run, disk, lambda: _counters(engine(session).statistics()))
    return Decoded(rounds, engine(session).statistics(), own_bytes)


def _rounds(
    job: Job, run: Callable[[int], None], disk: Callable[[], float], counters: Callable[[], dict[str, int]]
) -> list[Round]:
    rounds = []
    before = disk()
    for _ in range(job.rounds):
        first, start = counters(), time.perf_counter()
        run(job.tokens)
        seconds, last = time.perf_counter() - start, counters()
        after = disk()
        rounds.append(Round(seconds, (before, after), {name: last[name] - first[name] for name in first}))
        before = after
    return rounds


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(decode(Job(**json.loads(sys.stdin.read()))))))
