"""Dense matrices in 8 or 4 bits, quantised as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from onnx_moe.export.checkpoint.sources import ParameterSource
from onnx_moe.export.checkpoint.units import DenseUnit, Job, Output, Unit, Write, row_parts
from onnx_moe.export.dense import QuantizedProduct, quantize_dense, quantize_matrix


@dataclass(frozen=True)
class NBitsUnit:
    """The codes and scales of MatMulNBits for a matrix. row_is_column: a row of the source, [N, K], is a column of the
    product's matrix, so that rows are quantised apart; a source [K, N] is quantised whole.
    """

    source: ParameterSource
    row_is_column: bool
    bits: int
    codes: Output
    scales: Output

    @property
    def outputs(self) -> Sequence[Output]:
        return (self.codes, self.scales)

    @property
    def position(self) -> tuple[str, int]:
        return self.source.position

    def jobs(self) -> Iterator[Job]:
        rows = self.source.shape[0]
        whole = self.source.converter is not None or not self.row_is_column
        for part in [range(rows)] if whole else row_parts(self.source):
            stored = self.source.nbytes * len(part) // rows
            values = self.source.shape[1] * len(part) * self.scales.dtype.itemsize
            yield Job(stored, stored + 3 * values, self._job(part, whole))

    def _job(self, part: range, whole: bool) -> Callable[[Write], None]:
        def run(write: Write) -> None:
            values = (self.source.read() if whole else self.source.read_rows(part)).to(self.scales.dtype)
            matrix = values.t() if self.row_is_column else values
            codes, scales = quantize_matrix(matrix.contiguous().numpy(), self.bits)
            first = part.start if self.row_is_column else 0
            write(self.codes.name, first * codes[0].nbytes, codes)
            write(self.scales.name, first * scales[0].nbytes, scales)

        return run


def quantize_dense_units(model: ir.Model, units: dict[str, Unit], dense: str, accuracy_level: int) -> None:
    """`quantize_dense` of a model whose weights are `units` still to be written: puts those of its matrices there."""
    for product in quantize_dense(model, dense, accuracy_level):
        unit = units.get(product.weight)
        if isinstance(unit, DenseUnit) and unit.change is None and product.codes.name not in units:
            units |= dict.fromkeys((str(product.codes.name), str(product.scales.name)), _nbits_unit(unit, product))
    for name in [name for name in units if name not in model.graph.initializers]:
        del units[name]


def _nbits_unit(unit: DenseUnit, product: QuantizedProduct) -> NBitsUnit:
    return NBitsUnit(
        unit.source,
        unit.transposed != product.transposed,
        product.bits,
        _output(product.codes),
        _output(product.scales),
    )


def _output(value: ir.Value) -> Output:
    tensor = value.const_value
    assert tensor is not None
    dtype: torch.dtype = to_torch_dtype(tensor.dtype)
    return Output(str(value.name), dtype, tuple(tensor.shape.numpy()))
