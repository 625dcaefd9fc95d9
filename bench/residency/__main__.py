"""Models larger than memory: python -m bench.residency.

Writes a model of random FP4 experts to the disk, and runs one token after the other through it, each budget, policy and
signal in a process of its own, under a limit of memory if one is given. Reads are direct, so that a miss is a read from
the disk, and the disk is measured by the same reads between the rounds: what it gives changes by the minute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.residency.decoding import Decoded, Job, Round
from bench.residency.disk import READERS
from bench.residency.memory import Watch, memory_limit
from bench.residency.model import SHAPES, write_model
from onnx_moe.errors import OnnxMoeError

GIB = 1 << 30
#: Of one measurement of the disk.
DISK_SECONDS = 2.0
MB = 1e6


@dataclass(frozen=True)
class Measurement:
    """A process's decoding; peak: the most that it had in memory at once, from its beginning to its end."""

    entries: dict[str, str]
    decoded: Decoded
    tokens: int
    peak: int

    def total(self, name: str) -> int:
        """Of a counter, over the rounds."""
        return sum(each.counters[name] for each in self.decoded.rounds)

    @property
    def seconds(self) -> float:
        """Of all rounds."""
        return sum(each.seconds for each in self.decoded.rounds)

    @property
    def over_budget(self) -> int:
        """Bytes in memory beyond the budget, all that the process has."""
        return self.peak - int(self.decoded.statistics["budget_bytes"])

    @property
    def best_disk(self) -> float:
        """Bytes a second: the best that the disk gave in between."""
        return max(rate for each in self.decoded.rounds for rate in each.disk)

    def share_of_limit(self, disk: float) -> float:
        """Time that a disk of so many bytes a second needs for what calls missed / time that the rounds took."""
        expert_bytes = self.decoded.statistics["layers"][0]["expert_bytes"]
        return float(self.total("misses") * expert_bytes / disk / self.seconds)


def main(
    gib: Annotated[float, typer.Option(help="Size of all experts.")] = 4,
    shape: Annotated[str, typer.Option(help=f"Experts as those of: {', '.join(SHAPES)}.")] = "qwen3-30b-a3b",
    budgets: Annotated[str, typer.Option(help="Budgets, with commas, as onnx_moe.cache_bytes.")] = "25%,50%,100%",
    policies: Annotated[str, typer.Option(help="Policies, with commas.")] = "decayed-lfu",
    prefetch: Annotated[str, typer.Option(help="Signals for reading ahead, with commas.")] = "off,next-gate",
    tokens: Annotated[int, typer.Option(help="Tokens of a round.")] = 12,
    rounds: Annotated[int, typer.Option(help="Rounds; the disk is measured before and after each.")] = 3,
    warm_up: Annotated[int, typer.Option(help="Tokens before the first round, which fill the cache.")] = 36,
    threads: Annotated[int, typer.Option(help="Threads that compute.")] = 2,
    spin: Annotated[bool, typer.Option(help="Let idle threads spin, as ONNX Runtime does by default.")] = False,
    limit_gib: Annotated[float | None, typer.Option(help="Memory of a control group for each process.")] = None,
    mapped: Annotated[bool, typer.Option(help="Also with all experts mapped: slow beyond the memory.")] = True,
    folder: Annotated[
        Path | None, typer.Option(help="Where the model is, or goes to stay (default: not kept).")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Writes all figures to this file.")] = None,
) -> None:
    """Measures tokens a second, hits, bytes, stalls and memory by budget, policy and prefetch signal."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is none of {', '.join(SHAPES)}.", param_hint="--shape")
    of = SHAPES[shape]
    layers = max(1, round(gib * GIB / (of.experts * of.expert_bytes)))
    console = Console(width=150)
    with contextlib.ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx-moe-bench-")))
        path = home / f"{shape}_{layers}_layers.onnx"
        if not path.exists():
            write_model(path, of, layers)
        job = Job(str(path), dataclasses.asdict(of), layers, {}, tokens, warm_up, rounds, threads, spin, DISK_SECONDS)
        measurements = []
        for entries in _settings(budgets.split(","), policies.split(","), prefetch.split(","), mapped):
            of_mode = dataclasses.replace(
                job, entries=entries, disk_seconds=DISK_SECONDS if "cache_bytes" in entries else 0.0
            )
            measurements.append(_measure(of_mode, limit_gib))
            console.print(_table([measurements[-1]], f"{tokens} tokens x {rounds}, {threads} threads"))
    console.print(_table(measurements, f"{rounds} rounds of {tokens} tokens, {threads} threads"))
    console.print(
        f"{layers} layers x {of.experts} experts of {of.expert_bytes / MB:.2f} MB, top-{of.top_k}, "
        f"{layers * of.experts * of.expert_bytes / GIB:.1f} GiB. The limit is the time that {READERS} readers, who do "
        "nothing else, take for what calls missed, at the best rate that they had before or after any round. Memory is "
        f"all that a process has, looked at every {1000 * Watch.PERIOD:.0f} ms."
    )
    if json_file:
        json_file.write_text(json.dumps([dataclasses.asdict(measurement) for measurement in measurements], indent=1))


def _settings(budgets: list[str], policies: list[str], signals: list[str], mapped: bool) -> Iterator[dict[str, str]]:
    for budget, policy, signal in itertools.product(budgets, policies, signals):
        entries = {"residency": "pool", "cache_bytes": budget, "cache_policy": policy, "direct_io": "on"}
        yield entries if signal == "off" else {**entries, "prefetch": signal}
    if mapped:
        yield {"residency": "mapped"}


def _measure(job: Job, limit_gib: float | None) -> Measurement:
    with contextlib.ExitStack() as stack:
        if limit_gib is not None:
            group = stack.enter_context(memory_limit(round(limit_gib * GIB)))
            job = dataclasses.replace(job, group=str(group))
        command = [sys.executable, "-m", "bench.residency.decoding"]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        watch = Watch(process)
        output, _ = process.communicate(job.to_json())
        if process.returncode:
            raise OnnxMoeError(f"decoding with {job.entries} ended with code {process.returncode}: see above.")
        fields = json.loads(output)
        decoded = Decoded([Round(**each) for each in fields["rounds"]], fields["statistics"], fields["own_bytes"])
        return Measurement(job.entries, decoded, job.tokens * job.rounds, watch.result())


_HEADINGS = (
    "budget",
    "policy",
    "prefetch",
    "tokens/s",
    "hits",
    "there in time",
    "recall",
    "MB/token",
    "stall ms/token",
    "bookkeeping us/layer",
    "disk GB/s",
    "of the disk's limit",
    "memory - budget, MB",
)


def _table(measurements: list[Measurement], title: str) -> Table:
    table = Table(title=title)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    best_disk = max(measurement.best_disk for measurement in measurements)
    for measurement in measurements:
        table.add_row(*_row(measurement, best_disk))
    return table


def _row(measured: Measurement, best_disk: float) -> Iterator[str]:
    speed = f"{measured.tokens / measured.seconds:.2f}"
    lookups = measured.total("lookups")
    if not lookups:
        yield from ("mapped", "", "", speed, *[""] * (len(_HEADINGS) - 4))
        return
    yield measured.entries["cache_bytes"]
    yield measured.entries["cache_policy"]
    yield measured.entries.get("prefetch", "off")
    yield speed
    yield f"{100 * measured.total('hits') / lookups:.1f} %"
    yield f"{100 * (measured.total('hits') + measured.total('timely')) / lookups:.1f} %"
    used = measured.total("used")
    yield f"{100 * measured.total('correct') / used:.0f} %" if used else ""
    yield f"{measured.total('bytes_read') / MB / measured.tokens:.1f}"
    yield f"{measured.total('stall_ns') / 1e6 / measured.tokens:.1f}"
    yield f"{measured.total('bookkeeping_ns') / 1e3 / measured.total('calls'):.1f}"
    rates = [rate for each in measured.decoded.rounds for rate in each.disk]
    yield f"{sum(rates) / len(rates) / 1e9:.2f}"
    yield f"{100 * measured.share_of_limit(best_disk):.0f} %"
    yield f"{measured.over_budget / MB:+.0f}"


if __name__ == "__main__":
    typer.run(main)
