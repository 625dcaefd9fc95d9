"""Timing several implementations side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def median_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each of `runs`, measured in turn `repeats` times after one warm-up: whatever else the machine
    does then hits all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_number > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
