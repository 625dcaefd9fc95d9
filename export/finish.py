"""From what torch.onnx.export made to the model that is written: tidy nodes, portable bodies, aligned weights."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from onnx_moe.errors import ExportError
from onnx_moe.functions import add_functions
from onnx_moe.operators import DOMAIN, ROUTER

#: Alignment of tensors in the external data: a page of any system, so that a mapping can be handed on as it is.
#: Smaller tensors stay in the model file, where they are no burden.
ALIGNMENT = 65536


def tidy(model: ir.Model, router_logits: bool) -> None:
    """Drops outputs that nobody reads and notes of the exporter's; names the MoE nodes after their module.

    router_logits: makes each router's logits [..., E] an output of the model, "<name of the node>.router_logits".
    """
    names: Counter[str] = Counter()
    for node in model.graph:
        if node.domain == DOMAIN:
            _name_node(node)
            names[node.name or ""] += 1
            if names[node.name or ""] > 1:  # a module that is called more than once
                node.name = f"{node.name}.{names[node.name or '']}"
            if router_logits and node.op_type == ROUTER:
                _expose_logits(model, node)
            _drop_unused_logits(node)
        if node.op_type == "RMSNormalization" and node.domain == "":
            _match_types(node)
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


def _match_types(norm: ir.Node) -> None:
    """Gives a norm, which computes in float32, inputs of one type: ONNX Runtime does not run it on half precision with
    a float32 scale, which ONNX allows.
    """
    x, scale = norm.inputs
    if x is None or scale is None or x.dtype is None or scale.dtype is None or x.dtype == scale.dtype:
        return
    cast = ir.node("Cast", [x], {"to": int(scale.dtype)})
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(scale.dtype), x.shape
    norm.prepend(cast)
    norm.replace_input_with(0, cast.outputs[0])


def _expose_logits(model: ir.Model, node: ir.Node) -> None:
    logits = node.outputs[2]
    logits.name = f"{node.name or ROUTER}.router_logits"
    logits.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(logits)


def _drop_unused_logits(node: ir.Node) -> None:
    if node.op_type == ROUTER and len(node.outputs) == 3:
        logits = node.outputs[2]
        if not logits.uses() and not logits.is_graph_output():
            node.resize_outputs(2)


def _name_node(node: ir.Node) -> None:
    """…mlp.experts.up and .down for the products, …mlp.gate for the router: the path of the module that made it."""
    weights = node.inputs[1 if node.op_type == ROUTER else 2]
    if weights is None or weights.name is None:
        return
    name = weights.name
    for suffix, replacement in (("up_weights", "up"), ("down_weights", "down"), (".weight", "")):
        if name.endswith(suffix):
            name = name.removesuffix(suffix) + replacement
            break
    node.name = name


def add_metadata(model: ir.Model, **notes: str) -> None:
    """Notes on the file: who wrote it, with which Torch, and `notes` on how its weights were quantised."""
    model.producer_name = "onnx-moe"
    entries = {"version": version("onnx-moe"), "torch": version("torch"), **notes}
    model.metadata_props.update({f"onnx_moe.{key}": value for key, value in entries.items()})


def source_name(source: str) -> str:
    """How a file may name the model that it was made from: the hub's name, or a folder's own, without its place."""
    is_path = Path(source).expanduser().exists() or source.startswith(("/", ".", "~")) or source.count("/") != 1
    return Path(source).expanduser().resolve().name if is_path else source


def prepare_folder(path: Path) -> None:
    """Makes the folder of `path`: a place that cannot be written to is better known before the work than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}. Choose another folder, or make room.") from error


def save(model: ir.Model, path: Path, functions: bool) -> None:
    """Writes `path` and `path`.data. Both appear when they are whole; ExportError when the disk says no."""
    if functions:
        add_functions(model)
    data_name = f"{path.name}.data"
    try:
        with tempfile.TemporaryDirectory(prefix=".onnx-moe-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            ir.save(
                model,
                temporary,
                external_data=data_name,
                size_threshold_bytes=ALIGNMENT,
                alignment=ALIGNMENT,
                align_threshold=0,
            )
            data = Path(folder) / data_name
            if data.exists():
                os.replace(data, path.parent / data_name)
            else:
                (path.parent / data_name).unlink(missing_ok=True)  # of an earlier model of this name
            os.replace(temporary, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}. Choose another folder, or make room.") from error
