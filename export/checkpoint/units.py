"""Units of work: what is read, computed and written together, in jobs that run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint.sources import ParameterSource
from onnx_moe.export.experts import Quantization, gate_first, lay_out, quantize_parts
from onnx_moe.export.layers import Projection
from onnx_moe.formats import get_format

#: Source bytes of a job of a dense tensor. Where the matrix is turned, a job takes a write for each row of the output.
_CHUNK = 8 << 20
_TURNED_CHUNK = 32 << 20


@dataclass(frozen=True)
class Output:
    """A tensor of the model that is written. aliases: names of further initializers of the same bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def ir_type(self) -> ir.DataType:
        return from_torch_dtype(self.dtype)


class Write(Protocol):
    """Puts `data` into output `name`, `offset` bytes after its beginning; called from several threads."""

    def __call__(self, name: str, offset: int, data: np.ndarray[Any, Any]) -> None: ...


@dataclass(frozen=True)
class Job:
    """A piece of a unit. source_bytes: what it reads; memory_bytes: about what it holds at its largest."""

    source_bytes: int
    memory_bytes: int
    run: Callable[[Write], None]


class Unit(Protocol):
    """Outputs that are made together, so that they go to the same shard."""

    @property
    def outputs(self) -> Sequence[Output]: ...
    @property
    def position(self) -> tuple[str, int]:
        """File and offset of the source, by which units are ordered."""
        ...

    def jobs(self) -> Iterator[Job]: ...


def _chunk_bytes(turned: bool) -> int:
    return _TURNED_CHUNK if turned else _CHUNK


def row_parts(source: ParameterSource, turned: bool = False) -> Iterator[range]:
    """The rows of a matrix in parts of about the bytes of a job."""
    rows = source.shape[0]
    step = max(1, rows * _chunk_bytes(turned) // source.nbytes)
    for first in range(0, rows, step):
        yield range(first, min(first + step, rows))


@dataclass(frozen=True)
class DenseUnit:
    """A parameter in the element type of `output`; transposed, if the graph takes it so; with `change` made to it."""

    source: ParameterSource
    output: Output
    transposed: bool = False
    change: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def outputs(self) -> Sequence[Output]:
        return (self.output,)

    @property
    def position(self) -> tuple[str, int]:
        return self.source.position

    def jobs(self) -> Iterator[Job]:
        stored, written = self.source.nbytes, self.output.nbytes
        rows = self.source.shape[0] if self.source.shape else 1
        few = stored <= _chunk_bytes(self.transposed)
        if few or self.source.converter is not None or self.change is not None:
            yield Job(stored, stored + 2 * written, lambda write: self._write_all(write, range(rows)))
            return
        for part in row_parts(self.source, self.transposed):
            share = stored * len(part) // rows
            yield Job(share, share + 2 * written * len(part) // rows, self._rows_job(part))

    def _write_all(self, write: Write, rows: range) -> None:
        values = self.source.read()
        self._write(write, values if self.change is None else self.change(values), rows)

    def _rows_job(self, rows: range) -> Callable[[Write], None]:
        return lambda write: self._write(write, self.source.read_rows(rows), rows)

    def _write(self, write: Write, values: torch.Tensor, rows: range) -> None:
        # Turned before it is converted: the stored type is the smaller one, mostly.
        values = self._copy(values.t(), values.dtype) if self.transposed else values
        values = values if values.dtype == self.output.dtype else self._copy(values, self.output.dtype)
        if not self.transposed:
            row_bytes = self.output.nbytes // max(1, self.source.shape[0] if self.source.shape else 1)
            write(self.output.name, rows.start * row_bytes, tensor_bytes(values))
            return
        columns, height = self.output.shape
        turned = tensor_bytes(values).reshape(columns, -1)
        if len(rows) == height:
            write(self.output.name, 0, turned)
            return
        for column in range(columns):
            write(self.output.name, (column * height + rows.start) * self.output.dtype.itemsize, turned[column])

    def _copy(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The values in element type `dtype`, in their order."""
        buffer = self.source.files.buffers.take(values.numel() * dtype.itemsize)
        return torch.from_numpy(buffer).view(dtype).reshape(values.shape).copy_(values)


def tensor_bytes(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The bytes of `tensor`, row by row."""
    return tensor.contiguous().view(torch.uint8).numpy() if tensor.ndim else tensor.reshape(1).view(torch.uint8).numpy()


class ReadExperts(Protocol):
    """The FP4 buffers "weights", "scales" and perhaps "global_scale" of expert `index`, each [1, ...]."""

    def __call__(self, index: int) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class ExpertsUnit:
    """The FP4 buffers of one projection of all experts of a layer: one job for each expert."""

    outputs_by_kind: dict[str, Output]
    position: tuple[str, int]
    num_experts: int
    expert_bytes: int
    read: ReadExperts

    @property
    def outputs(self) -> Sequence[Output]:
        return tuple(self.outputs_by_kind.values())

    def jobs(self) -> Iterator[Job]:
        written = sum(output.nbytes for output in self.outputs) // self.num_experts
        for expert in range(self.num_experts):
            yield Job(self.expert_bytes, 2 * self.expert_bytes + 2 * written, self._expert_job(expert))

    def _expert_job(self, expert: int) -> Callable[[Write], None]:
        def run(write: Write) -> None:
            buffers = self.read(expert)
            for kind, output in self.outputs_by_kind.items():
                part = tensor_bytes(buffers[kind])
                if part.nbytes * self.num_experts != output.nbytes:
                    raise CheckpointError(
                        f"{output.name}: expert {expert} has {part.nbytes} bytes of {kind}, not "
                        f"{output.nbytes // self.num_experts}: the checkpoint's tensors do not fit config.json."
                    )
                write(output.name, expert * part.nbytes, part)

        return run


def quantized_reader(
    sources: Sequence[ParameterSource], projection: Projection, moves_gate: bool, quantization: Quantization, what: str
) -> ReadExperts:
    """Experts in floating point: read from the sources of the projection's parameters, brought to [1, N, K],
    quantised.
    """

    def read(index: int) -> dict[str, torch.Tensor]:
        parameters = zip(sources, projection.parameters, strict=True)
        parts = [source.read_expert(index, projection.rows_of_expert(own, index)) for source, own in parameters]
        parts = [part.float() if part.dtype == torch.float64 or part.dtype.itemsize == 1 else part for part in parts]
        matrix = projection.matrix_of_expert(parts)
        matrix = gate_first(matrix) if moves_gate else matrix
        return quantize_parts(quantization, [matrix], f"{what}, expert {index}")

    return read


def fp4_reader(source: ParameterSource, moves_gate: bool, quantization: Quantization, pieces: int) -> ReadExperts:
    """Experts in FP4, their bytes as they are. pieces: how many global scales an expert gets, 1 or 2."""

    def read(index: int) -> dict[str, torch.Tensor]:
        codes, scales, global_scales = source.read_expert_codes(index)
        if moves_gate:
            codes, scales = gate_first(codes), gate_first(scales)
        buffers = lay_out({"weights": codes, "scales": scales}, quantization)
        if quantization.format == "nvfp4":
            buffers["global_scale"] = torch.tensor([global_scales if pieces > 1 else global_scales[0]])
        return buffers

    return read


def expert_outputs(
    name: str, num_experts: int, rows: int, columns: int, quantization: Quantization, pieces: int
) -> dict[str, Output]:
    """The outputs of one projection [E, N, K]: `name` is the buffers' name without what they hold."""
    block = get_format(quantization.format).resolve_block_size(quantization.block_size)
    scale_type = torch.float16 if get_format(quantization.format).scale_type == "float16" else torch.uint8
    outputs = {
        "weights": Output(f"{name}_weights", torch.uint8, (num_experts, rows, columns // 2)),
        "scales": Output(f"{name}_scales", scale_type, (num_experts, rows, columns // block)),
    }
    if quantization.format == "nvfp4":
        shape = (num_experts, pieces) if pieces > 1 else (num_experts,)
        outputs["global_scale"] = Output(f"{name}_global_scale", torch.float32, shape)
    return outputs
