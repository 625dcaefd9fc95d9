"""What the disk gives to reads as the expert cache makes them.

Of popular experts more often than of others, as the cache misses them: a virtual disk may well have those in its host's
memory, and then gives more than for experts drawn alike (1.5 instead of 1.2 GB/s here).
"""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from bench.residency.model import Shape

#: Readers that wait for nothing but the disk, as many as the engine has by default.
READERS = 4
_HUGE = 2 << 20


@dataclass(frozen=True)
class Parts:
    """Where the experts' parts lie: of expert `number` at offsets + number · sizes, a row for each layer.

    popularity: of a layer's experts, summing to 1.
    """

    offsets: NDArray[np.int64]
    sizes: tuple[int, ...]
    popularity: NDArray[np.float64]


def find_parts(model: Path, shape: Shape) -> Parts:
    """The parts of a model that `write_model` wrote."""
    tensors = {tensor.name: tensor for tensor in onnx.load(model, load_external_data=False).graph.initializer}
    layers = sum(name.endswith(".gate_bias") for name in tensors)
    offsets = [
        [int(ExternalDataInfo(tensors[f"{layer}.{part}"]).offset or 0) for part in shape.parts]
        for layer in range(layers)
    ]
    biases = [numpy_helper.to_array(tensors[f"{layer}.gate_bias"]) for layer in range(layers)]
    popularity = np.exp(np.array(biases, np.float64))
    sizes = tuple(rows * row_bytes for rows, row_bytes in shape.parts.values())
    return Parts(np.array(offsets), sizes, popularity / popularity.sum(-1, keepdims=True))


def bandwidth(data: Path, parts: Parts, seconds: float) -> float:
    """Bytes a second of direct reads of experts, each part one read, by READERS at once.

    Nothing is computed and nobody waits for another's read: the most that the engine could get.
    """
    layers, experts = parts.popularity.shape
    deadline = time.perf_counter() + seconds

    def read(seed: int) -> int:
        random = np.random.default_rng(seed)
        descriptor = os.open(data, os.O_RDONLY | os.O_DIRECT)
        total = 0
        with mmap.mmap(-1, -(-max(parts.sizes) // _HUGE) * _HUGE) as buffer, memoryview(buffer) as memory:
            buffer.madvise(mmap.MADV_HUGEPAGE)  # as the engine's slots
            while time.perf_counter() < deadline:
                layer = int(random.integers(layers))
                expert = int(random.choice(experts, p=parts.popularity[layer]))
                for offset, size in zip(parts.offsets[layer].tolist(), parts.sizes, strict=True):
                    with memory[:size] as target:
                        total += os.preadv(descriptor, [target], offset + expert * size)
        os.close(descriptor)
        return total

    seeds = np.random.SeedSequence().generate_state(READERS).tolist()
    start = time.perf_counter()
    with ThreadPoolExecutor(READERS) as readers:
        total = sum(readers.map(read, seeds))
    return total / (time.perf_counter() - start)
