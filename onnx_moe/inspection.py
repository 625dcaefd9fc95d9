"""What a model's MoE nodes are, without loading its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from onnx_moe import _native
from onnx_moe.errors import InvalidModelError, OnnxMoeError
from onnx_moe.formats import get_format
from onnx_moe.operators import BLOCK, DOMAIN, ROUTER, load_operators

# Where MoEExpertGemmFP4 and MoEBlockFP4 have their (first) weights.
_WEIGHTS, _FUSED_WEIGHTS = 2, 4


@dataclass(frozen=True)
class MoENode:
    """One MoE node of a model.

    num_experts, top_k and format are None where the operator has none or the graph leaves it open. nbytes counts the
    node's constant inputs.
    """

    name: str
    operator: str
    num_experts: int | None
    top_k: int | None
    format: str | None
    shape: str
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """A model's MoE nodes, and who would run them on this machine. data_files: of its external data."""

    path: Path
    data_files: tuple[Path, ...]
    nodes: tuple[MoENode, ...]
    has_bodies: bool
    nbytes: int

    @property
    def runner(self) -> str:
        """Who runs the nodes here: the plugin's kernel, the portable bodies, or nobody."""
        try:
            return f"plugin, kernel {_native.current_kernel()}"
        except OnnxMoeError as error:
            if self.has_bodies:
                return f"portable bodies on stock ONNX Runtime (plugin: {error})"
            return f"nobody: the model carries no portable bodies, and the plugin is not there ({error})"


def inspect_model(path: str | Path) -> Inspection:
    """Reads the MoE nodes of the ONNX file at `path`; weights in external data are not read.

    Raises InvalidModelError when the file is not an ONNX model.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidModelError(f"{path} is not a file: give the path of an .onnx model.")
    try:
        model = ir.from_proto(onnx.load(path, load_external_data=False))
    except Exception as error:  # protobuf and onnx raise types of their own
        raise InvalidModelError(f"{path} is not an ONNX model: {error}") from error
    data_files = tuple(sorted(_external_files(model, path.parent)))
    return Inspection(
        path=path,
        data_files=data_files,
        nodes=tuple(_moe_nodes(model)),
        has_bodies=any(domain == DOMAIN for domain, _, _ in model.functions),
        nbytes=path.stat().st_size + sum(entry.stat().st_size for entry in data_files),
    )


def _external_files(model: ir.Model, folder: Path) -> set[Path]:
    files = set()
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            files.add(folder / value.const_value.location)
    return {file for file in files if file.exists()}


def _moe_nodes(model: ir.Model) -> Iterator[MoENode]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == DOMAIN and node.op_type in load_operators():
            yield _describe(node)


def _dimensions(node: ir.Node, index: int) -> list[int | None]:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.shape is None:
        return []
    return [size if isinstance(size, int) else None for size in value.shape]


def _constant_bytes(node: ir.Node) -> int:
    return sum(value.const_value.nbytes for value in node.inputs if value is not None and value.const_value is not None)


def _describe(node: ir.Node) -> MoENode:
    name = node.name or node.outputs[0].name or "?"
    if node.op_type == ROUTER:
        gate = _dimensions(node, 1)
        experts = gate[0] if gate else (_dimensions(node, 0) or [None])[-1]
        shape = f"{_size(gate[1])} → {_size(gate[0])}" if gate else "logits"
        return MoENode(
            name, node.op_type, experts, node.attributes.get_int("top_k"), None, shape, _constant_bytes(node)
        )
    fused = node.op_type == BLOCK
    weights = _dimensions(node, _FUSED_WEIGHTS if fused else _WEIGHTS)
    format_name = node.attributes.get_string("format", "mxfp4")
    block = get_format(format_name).resolve_block_size(node.attributes.get_int("block_size", 0))
    slots = node.attributes.get_int("top_k") if fused else (_dimensions(node, 1) or [None])[-1]
    shape = "?"
    if len(weights) == 3:
        columns = None if weights[2] is None else 2 * weights[2]
        shape = f"{_size(columns)} → {_size(weights[1])}"
    return MoENode(
        name,
        node.op_type,
        weights[0] if weights else None,
        slots,
        f"{format_name} (block {block})",
        shape,
        _constant_bytes(node),
    )


def _size(value: int | None) -> str:
    return "?" if value is None else str(value)
