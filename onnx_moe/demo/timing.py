"""Timing several implementations side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def median_seconds(runs: dict[str, Callable[[], object]], rounds: int, burst: int) -> dict[str, float]:
    """Median time of each of `runs`, measured in turn for `rounds` rounds: whatever else the machine does then hits
    all of them alike.

    A turn is a burst of calls whose first is not counted where there are more: the threads of whoever ran before spin
    for a while, and would take the cores from the next.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if burst > 1:
                run()
            for _ in range(max(1, burst - 1)):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
