"""Where each tensor goes: shards of external data, laid out before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from onnx_moe.export.checkpoint.buffers import rounded_up
from onnx_moe.export.checkpoint.units import Output, Unit
from onnx_moe.export.finish import ALIGNMENT

#: Alignment of tensors that are smaller than a page of any system.
_SMALL_ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Where an output lies."""

    output: Output
    offset: int


@dataclass
class Shard:
    """A file of external data."""

    name: str = ""
    nbytes: int = 0
    units: list[Unit] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)

    def add(self, unit: Unit) -> None:
        for output in unit.outputs:
            alignment = ALIGNMENT if output.nbytes >= ALIGNMENT else _SMALL_ALIGNMENT
            offset = rounded_up(self.nbytes, alignment)
            self.places |= dict.fromkeys(output.names, Place(output, offset))
            self.nbytes = offset + output.nbytes
        self.units.append(unit)


@dataclass
class Plan:
    """What a model's weights become: shards, and units that are small enough for the model file itself."""

    shards: list[Shard]
    embedded: list[Unit]

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    def digest(self) -> str:
        """Changes when anything would lie elsewhere."""
        digest = hashlib.sha256()
        for shard in self.shards:
            for name, place in shard.places.items():
                digest.update(
                    f"{shard.name} {name} {place.offset} {place.output.dtype} {place.output.shape}\n".encode()
                )
        return digest.hexdigest()


def make_plan(units: Iterable[Unit], shard_bytes: int) -> Plan:
    """Lays out `units` in the order of their source, each whole in one shard of at most `shard_bytes`, unless it alone
    is larger.
    """
    distinct = list({id(unit): unit for unit in units}.values())
    large = [unit for unit in distinct if any(output.nbytes >= ALIGNMENT for output in unit.outputs)]
    chosen = {id(unit) for unit in large}
    shards: list[Shard] = []
    for unit in sorted(large, key=lambda unit: unit.position):
        size = sum(output.nbytes + ALIGNMENT for output in unit.outputs)
        if not shards or (shards[-1].units and shards[-1].nbytes + size > shard_bytes):
            shards.append(Shard())
        shards[-1].add(unit)
    for index, shard in enumerate(shards):
        number = "" if len(shards) == 1 else f"-{index + 1:05}-of-{len(shards):05}"
        shard.name = f"model.onnx.data{number}"
    return Plan(shards, [unit for unit in distinct if id(unit) not in chosen])
