"""Export of a checkpoint larger than memory: python -m bench.checkpoint.

Writes a checkpoint of random numbers with GLM-4.7-Flash's shapes, exports it in a process of its own, and compares the
rate with what the disk reads, what it writes and what the quantiser does, all measured in the same run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.glm_checkpoint import GLM_FLASH, write_glm_flash
from onnx_moe.export.checkpoint.buffers import BufferPool
from onnx_moe.export.checkpoint.disk import UncachedWriter, open_uncached
from onnx_moe.quantization import quantize

_BLOCK = 16 << 20


@dataclass(frozen=True)
class Rates:
    """Bytes a second: the disk's, and the quantiser's in bytes of bfloat16."""

    read: float
    write: float
    quantise: float


@dataclass(frozen=True)
class Export:
    """An export's process: seconds from its start, seconds of its weights, and its peak of resident memory in bytes."""

    seconds: float
    weight_seconds: float
    peak_bytes: int


def main(
    layers: Annotated[int, typer.Option(help="Layers of the checkpoint: 1.27 GB each.")] = 17,
    format: Annotated[str, typer.Option(help="mxfp4, nvfp4 or fp4.")] = "mxfp4",
    scale: Annotated[str, typer.Option(help="Rule for block scales.")] = "mse",
    folder: Annotated[
        Path | None, typer.Option(help="Where the checkpoint is, or goes to stay (default: not kept).")
    ] = None,
) -> None:
    """Measures an export's rate and its peak of memory."""
    with contextlib.ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx-moe-bench-")))
        checkpoint, output = home / f"glm-{layers}", home / f"glm-{layers}-onnx"
        if not checkpoint.exists():
            write_glm_flash(checkpoint, layers)
        files = sorted(checkpoint.glob("*.safetensors"))
        source_bytes = sum(file.stat().st_size for file in files)
        rates = Rates(_read_rate(files[-1]), _write_rate(home), _quantiser_rate(format, scale))
        for leftover in (output, output.with_name(f"{output.name}.partial")):
            shutil.rmtree(leftover, ignore_errors=True)
        for file in files:
            _forget(file)
        export = _export(checkpoint, output, format, scale)
        written_bytes = sum(file.stat().st_size for file in output.iterdir())
        shutil.rmtree(output)
        _report(source_bytes, written_bytes, rates, export)


def _report(source_bytes: int, written_bytes: int, rates: Rates, export: Export) -> None:
    """All rates in bytes of the source, so that they compare."""
    limits = {
        "disk reads": rates.read,
        "disk writes": rates.write * source_bytes / written_bytes,
        "quantiser": rates.quantise,
    }
    rate = source_bytes / export.weight_seconds
    table = Table(title=f"{source_bytes / 1e9:.1f} GB became {written_bytes / 1e9:.1f} GB")
    for heading in ("", "GB/s of source"):
        table.add_column(heading, justify="right")
    for name, value in limits.items():
        table.add_row(name, f"{value / 1e9:.3f}")
    table.add_row("export, weights", f"{rate / 1e9:.3f}")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{100 * rate / min(limits.values()):.0f} % of the least; weights {export.weight_seconds:.0f} s, in all "
        f"{export.seconds:.0f} s; peak resident memory {export.peak_bytes / 1e9:.2f} GB"
    )


def _forget(file: Path) -> None:
    """Drops a file's pages, so that reads come from the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_rate(file: Path) -> float:
    """Large reads of two threads, through the system's cache or past it, whichever is faster."""
    return max(_read_rate_with(read, file) for read in (_read_cached, _read_past_cache))


def _read_rate_with(read: Callable[[Path, range], None], file: Path) -> float:
    _forget(file)
    size = file.stat().st_size // 2 // _BLOCK * _BLOCK
    start = time.perf_counter()
    halves = (range(0, size, _BLOCK), range(size, 2 * size, _BLOCK))
    _side_by_side([lambda half=half: read(file, half) for half in halves])
    return 2 * size / (time.perf_counter() - start)


def _read_cached(file: Path, offsets: range) -> None:
    buffer = bytearray(_BLOCK)
    with file.open("rb", buffering=0) as opened:
        for offset in offsets:
            os.preadv(opened.fileno(), [buffer], offset)


def _read_past_cache(file: Path, offsets: range) -> None:
    buffer = BufferPool().take(_BLOCK)
    descriptor = open_uncached(file, os.O_RDONLY)
    try:
        for offset in offsets:
            os.preadv(descriptor, [buffer.data], offset)
    finally:
        os.close(descriptor)


def _side_by_side(work: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _write_rate(folder: Path) -> float:
    """Of a new file until it is on the disk, through the system's cache or past it, whichever is faster."""
    return max(_write_rate_with(write, folder / "write-rate") for write in (_write_cached, _write_past_cache))


def _write_rate_with(write: Callable[[Path, int, NDArray[np.uint8]], None], file: Path) -> float:
    block = BufferPool().take(_BLOCK)
    block[:] = np.frombuffer(np.random.default_rng(0).bytes(_BLOCK), np.uint8)
    nbytes = 2 << 30
    start = time.perf_counter()
    write(file, nbytes, block)
    seconds = time.perf_counter() - start
    file.unlink()
    return nbytes / seconds


def _write_cached(file: Path, nbytes: int, block: NDArray[np.uint8]) -> None:
    with file.open("wb", buffering=0) as opened:
        for _ in range(nbytes // _BLOCK):
            opened.write(block.data)
        os.fsync(opened.fileno())


def _write_past_cache(file: Path, nbytes: int, block: NDArray[np.uint8]) -> None:
    writer = UncachedWriter(file, nbytes, BufferPool())
    halves = (range(0, nbytes // 2, _BLOCK), range(nbytes // 2, nbytes, _BLOCK))
    _side_by_side([lambda half=half: [writer.write(block, offset) for offset in half] for half in halves])
    writer.sync()
    writer.close()


def _quantiser_rate(format: str, scale: str) -> float:
    """Of experts' matrices on every core, bfloat16 as in the checkpoint; the median of five."""
    shape = (2 * (os.cpu_count() or 1), 2 * GLM_FLASH["moe_intermediate_size"], GLM_FLASH["hidden_size"])
    matrices = torch.randn(shape).to(torch.bfloat16)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        quantize(matrices, format, scale=scale)
        seconds.append(time.perf_counter() - start)
    return matrices.nbytes / float(np.median(seconds))


_PROGRAM = """
import sys, time
from onnx_moe.export.checkpoint import CheckpointOptions, export_checkpoint

class Clock:
    begun = 0.0
    def stage(self, line):
        if line == "writing the weights":
            self.begun = time.perf_counter()
        if line == "writing the model":
            print(time.perf_counter() - self.begun)
    def total(self, nbytes): pass
    def advance(self, nbytes): pass

source, folder, format, scale = sys.argv[1:]
export_checkpoint(source, folder, CheckpointOptions(format=format, scale=scale), Clock())
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def _export(checkpoint: Path, output: Path, format: str, scale: str) -> Export:
    command = [sys.executable, "-c", _PROGRAM, str(checkpoint), str(output), format, scale]
    start = time.perf_counter()
    # Its own peak: the kernel's account of a process begins with the peak of the one that it was forked from.
    exported = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if exported.returncode:
        raise SystemExit(f"the export failed with status {exported.returncode}")
    weight_seconds, peak_kibibytes = exported.stdout.split()[-2:]
    return Export(seconds, float(weight_seconds), int(peak_kibibytes) * 1024)


if __name__ == "__main__":
    typer.run(main)
