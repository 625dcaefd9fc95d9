"""Models with a planted mistake, each made from a good file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_moe.functions import strip_functions
from onnx_moe.operators import ROUTER

Edit = Callable[[ir.Model], None]


def plant(good: Path, folder: Path, edit: Edit) -> Path:
    """A copy of the model `good` in `folder`, after `edit`."""
    model = ir.load(good)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    edit(model)
    path = folder / "defect.onnx"
    ir.save(model, path, external_data="defect.onnx.data")
    return path


def _change(model: ir.Model, suffix: str, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
    (value,) = (value for name, value in model.graph.initializers.items() if name.endswith(suffix))
    assert value.const_value is not None
    value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=value.name)


def wrong_scale_of_one_expert(model: ir.Model) -> None:
    """Expert 5 of layer 2 decodes to twice its weights."""

    def change(scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
        scales[5] += 1
        return scales

    _change(model, "layers.2.mlp.experts.down_scales", change)


def gate_and_up_swapped(model: ir.Model) -> None:
    """Layer 1 multiplies with the gate and gates with the up projection."""
    for suffix in ("weights", "scales"):
        _change(model, f"layers.1.mlp.experts.up_{suffix}", lambda rows: np.roll(rows, rows.shape[1] // 2, axis=1))


def correction_bias_ignored(model: ir.Model) -> None:
    """Routers choose by the uncorrected scores."""
    strip_functions(model)  # those are for routers with a bias
    for node in model.graph:
        if node.op_type == ROUTER:
            node.replace_input_with(3, None)


def subnormal_decoded_as_a_quarter(model: ir.Model) -> None:
    """The portable bodies decode the codes of 0.5 as 0.25. (The plugin has its own table: run this without it.)"""
    changed = 0
    for function in model.functions.values():
        for node in ir.traversal.RecursiveGraphIterator(function.graph):
            attribute = node.attributes.get("value")
            if node.op_type != "Constant" or attribute is None:
                continue
            table = attribute.as_tensor().numpy()
            if table.shape == (256, 2):
                wrong = np.where(np.abs(table) == 0.5, table / 2, table).astype(np.float32)
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(wrong))
                changed += 1
    assert changed, "no body holds a table of codes"
