"""Dense weights in 8 or 4 bits: products of a model as com.microsoft MatMulNBits, ONNX Runtime's own operator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_moe.errors import ExportError

#: What `dense` may be, and how many bits a weight has then; None leaves it as it is.
DENSE_BITS = {"float": None, "int8": 8, "int4": 4}

#: Weights to a scale, along K.
BLOCK_SIZE = 32

_DOMAIN = "com.microsoft"


def _import_quantizer() -> ModuleType:
    """ONNX Runtime's quantiser. Its import sets up the root logger, which is the program's business: it is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from onnxruntime.quantization import matmul_nbits_quantizer

    root.handlers[:] = handlers
    root.setLevel(level)
    module: ModuleType = matmul_nbits_quantizer
    return module


_quantizer = _import_quantizer()


def check_dense(dense: str) -> None:
    """Raises ExportError for a wrong choice."""
    if dense not in DENSE_BITS:
        raise ExportError(f"dense={dense!r} is none of {', '.join(DENSE_BITS)}.")


@dataclass(frozen=True)
class QuantizedProduct:
    """A product that became MatMulNBits. weight: the name of the matrix that it had, [N, K] where `transposed`, else
    [K, N]. codes, scales: the initializers that stand for it.
    """

    weight: str
    transposed: bool
    bits: int
    codes: ir.Value
    scales: ir.Value


def quantize_dense(model: ir.Model, dense: str, accuracy_level: int = 0) -> list[QuantizedProduct]:
    """Turns products with a constant matrix into MatMulNBits, and returns which.

    dense: "float" changes nothing. Embeddings, routers, norms and convolutions stay, and so does a matrix whose K is
    no multiple of the block. accuracy_level: as in MatMulNBits: 4 lets activations be int8.
    The weights are quantised when the model is written, one matrix at a time.
    """
    bits = DENSE_BITS[dense]
    if bits is None:
        return []
    products = [node for node in model.graph if node.domain == "" and node.op_type == "MatMul"]
    found = [(node, weight) for node in products if (weight := _Weight.of(node)) is not None]
    quantized = [_replace(model.graph, node, weight, bits, accuracy_level) for node, weight in found]
    if found:
        model.graph.opset_imports[_DOMAIN] = 1
    _drop_unused(model.graph, [weight for _, weight in found])
    return quantized


def quantize_matrix(matrix: NDArray[np.floating], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """Codes [N, K / 32, 4 · bits] and scales [N, K / 32] of a matrix [K, N]; each column has its own."""
    config = _quantizer.DefaultWeightOnlyQuantConfig(block_size=BLOCK_SIZE, is_symmetric=True, bits=bits)
    codes, scales, _ = _quantizer.DefaultWeightOnlyQuantizer(config).qbits_block_quant(matrix)
    return codes, scales


class _Weight:
    """The constant matrix [K, N] of a product: an initializer, as it is or transposed by a node."""

    def __init__(self, value: ir.Value, transposed: bool, dtype: ir.DataType, shape: tuple[int, int]) -> None:
        self.value, self.transposed, self.dtype, self.shape = value, transposed, dtype, shape

    @classmethod
    def of(cls, node: ir.Node) -> _Weight | None:
        """The weight of a MatMul; None where it is no constant matrix of floats whose K is made of blocks."""
        value = node.inputs[1]
        if value is None:
            return None
        producer = value.producer()
        transposed = producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None
        source = producer.inputs[0] if transposed and producer is not None else value
        if source is None or not source.is_initializer() or source.const_value is None:
            return None
        shape = tuple(source.const_value.shape.numpy())
        dtype = source.const_value.dtype
        if len(shape) != 2 or dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return None
        shape = shape[::-1] if transposed else shape
        return None if shape[0] % BLOCK_SIZE else cls(source, transposed, dtype, (shape[0], shape[1]))

    def numpy(self) -> NDArray[np.floating]:
        """The matrix [K, N]."""
        tensor = self.value.const_value
        assert tensor is not None
        array: NDArray[np.floating] = tensor.numpy()
        return np.ascontiguousarray(array.T if self.transposed else array)


def _replace(graph: ir.Graph, node: ir.Node, weight: _Weight, bits: int, accuracy_level: int) -> QuantizedProduct:
    rows, columns = weight.shape
    blocks = rows // BLOCK_SIZE
    name = f"{weight.value.name}.transposed" if weight.transposed else f"{weight.value.name}"
    # Each is made anew when it is asked for: a model's matrices never are in memory together.
    codes = _initializer(
        graph,
        f"{name}.int{bits}",
        lambda: quantize_matrix(weight.numpy(), bits)[0],
        ir.DataType.UINT8,
        (columns, blocks, 4 * bits),
    )
    scales = _initializer(
        graph,
        f"{name}.int{bits}_scales",
        lambda: quantize_matrix(weight.numpy(), bits)[1],
        weight.dtype,
        (columns, blocks),
    )
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": BLOCK_SIZE, "accuracy_level": accuracy_level}
    output = node.outputs[0]
    replacement = ir.node(
        "MatMulNBits", [node.inputs[0], codes, scales], attributes, domain=_DOMAIN, outputs=[ir.Value(name=output.name)]
    )
    replacement.outputs[0].type, replacement.outputs[0].shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [replacement], [output], replacement.outputs)
    return QuantizedProduct(weight.value.name or "", weight.transposed, bits, codes, scales)


def _initializer(
    graph: ir.Graph, name: str, make: Callable[[], np.ndarray], dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.Value:
    """The initializer `name`; the one that is there, where two products share a weight."""
    if name in graph.initializers:
        return graph.initializers[name]
    lazy = ir.LazyTensor(lambda: ir.tensor(make(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def _drop_unused(graph: ir.Graph, weights: list[_Weight]) -> None:
    for weight in weights:
        for node in [usage.node for usage in weight.value.uses()]:
            if node.op_type == "Transpose" and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                graph.remove(node, safe=True)
        name = weight.value.name
        if name is not None and name in graph.initializers and not weight.value.uses():
            del graph.initializers[name]
