"""Matrices quantised in parts have the numbers of the whole ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from onnx_moe.export.checkpoint import units
from onnx_moe.export.checkpoint.dense_units import NBitsUnit
from onnx_moe.export.checkpoint.graph import materialise
from onnx_moe.export.dense import quantize_matrix


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_in_parts(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_CHUNK", 1000)  # 7 rows of bfloat16: the last part is shorter
    matrix = torch.randn((45, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    source: Any = SimpleNamespace(
        shape=(45, 64), nbytes=matrix.nbytes, converter=None, read_rows=lambda rows: matrix[rows.start : rows.stop]
    )
    codes = units.Output("codes", torch.uint8, (45, 2, 4 * bits))
    scales = units.Output("scales", torch.float32, (45, 2))
    unit = NBitsUnit(source, True, bits, codes, scales)
    assert len(list(unit.jobs())) == 7
    tensors = materialise(unit)
    expected = quantize_matrix(np.ascontiguousarray(matrix.float().numpy().T), bits)
    np.testing.assert_array_equal(tensors["codes"].numpy(), expected[0])
    np.testing.assert_array_equal(tensors["scales"].numpy().reshape(45, 2), expected[1].reshape(45, 2))


def test_a_number() -> None:
    source: Any = SimpleNamespace(shape=(), nbytes=4, converter=None, read=lambda: torch.tensor(1.5))
    unit = units.DenseUnit(source, units.Output("number", torch.float32, ()))
    assert materialise(unit)["number"].numpy() == 1.5
