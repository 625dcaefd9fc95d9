"""The implementations that every case is tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator

import onnx_moe
import onnx_moe.reference
from onnx_moe import _native
from onnx_moe.functions import add_functions
from onnx_moe.operators import EXPERT_GEMM, ROUTER
from onnx_moe.reference_evaluator import OPERATORS

from .cases import GemmCase, RouterCase
from .data import Array, GemmInputs, RouterInputs
from .model import one_node_model

Outputs = dict[str, Array]


class Implementation(Protocol):
    name: str

    def gemm(self, case: GemmCase, inputs: GemmInputs) -> Outputs: ...
    def router(self, case: RouterCase, inputs: RouterInputs) -> Outputs: ...


class TorchReference:
    """torch.ops.onnx_moe."""

    name = "torch"

    def gemm(self, case: GemmCase, inputs: GemmInputs) -> Outputs:
        tensors = [to_torch(array) for array in vars(inputs).values()]
        return {"y": to_numpy(torch.ops.onnx_moe.expert_gemm_fp4(*tensors, **case.attributes))}

    def router(self, case: RouterCase, inputs: RouterInputs) -> Outputs:
        tensors = [to_torch(array) for array in vars(inputs).values()]
        outputs = torch.ops.onnx_moe.router(*tensors, **case.attributes)
        return dict(zip(router_outputs(case), map(to_numpy, outputs), strict=True))


class ModelImplementation:
    """Runs a model of one node."""

    name: str

    def gemm(self, case: GemmCase, inputs: GemmInputs) -> Outputs:
        constants = () if case.all_inputs else ("weights", "scales", "global_scale", "bias")
        return self._run(EXPERT_GEMM, case, inputs, constants, gemm_outputs(case, inputs))

    def router(self, case: RouterCase, inputs: RouterInputs) -> Outputs:
        constants = ("gate_weight", "gate_bias", "correction_bias", "next_gate_weight")
        return self._run(ROUTER, case, inputs, constants, router_outputs(case))

    def _run(
        self,
        operator: str,
        case: GemmCase | RouterCase,
        inputs: GemmInputs | RouterInputs,
        constants: Sequence[str],
        outputs: Outputs,
    ) -> Outputs:
        types = {
            name: (onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.ndim) for name, array in outputs.items()
        }
        model = one_node_model(operator, vars(inputs), case.attributes, constants, types)
        feeds = {value.name: getattr(inputs, value.name) for value in model.graph.input}
        return self.evaluate(model, feeds, outputs)

    def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Outputs) -> Outputs:
        raise NotImplementedError


class EvaluatorReference(ModelImplementation):
    """The operators in onnx's ReferenceEvaluator."""

    name = "evaluator"

    def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Outputs) -> Outputs:
        values = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, dict(feeds))
        return dict(zip(outputs, values, strict=True))


class PortableBodies(ModelImplementation):
    """The functions of the model, in an ONNX Runtime without the plugin."""

    name = "portable"

    def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Outputs) -> Outputs:
        with_functions = ir.from_proto(model)
        add_functions(with_functions)
        return run_poisoned(ir.to_proto(with_functions), session_options(), feeds, outputs)


class PluginKernel(ModelImplementation):
    """A CPU kernel of the plugin."""

    def __init__(self, kernel: str, threads: int = 2) -> None:
        self.name = f"plugin-{kernel}"
        self._kernel = kernel
        self._threads = threads

    def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Outputs) -> Outputs:
        options = session_options(self._threads)
        onnx_moe.register(options)
        options.add_session_config_entry("onnx_moe.device", "cpu")
        with _native.use_kernel(self._kernel):
            return run_poisoned(model, options, feeds, outputs)


IMPLEMENTATIONS: list[Implementation] = [
    TorchReference(),
    EvaluatorReference(),
    PortableBodies(),
    *(PluginKernel(kernel) for kernel in _native.kernel_names()),
]


def gemm_outputs(case: GemmCase, inputs: GemmInputs) -> Outputs:
    """The outputs of MoEExpertGemmFP4, to be filled."""
    leading = case.tokens if case.combine else (*case.tokens, case.slots)
    return {"y": np.empty((*leading, case.output_rows), inputs.x.dtype)}


def router_outputs(case: RouterCase) -> Outputs:
    """The outputs of MoERouter, to be filled."""
    slots = case.top_k + case.num_shared_experts
    return {
        "expert_ids": np.empty((*case.tokens, slots), np.int32),
        "expert_weights": np.empty((*case.tokens, slots), np.float32),
        "router_logits": np.empty((*case.tokens, case.num_experts), np.float32),
    }


def to_torch(array: Array | None) -> torch.Tensor | None:
    if array is None:
        return None
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


def session_options(threads: int = 2) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # tests share the machine
    return options


def run_poisoned(
    model: onnx.ModelProto, options: onnxruntime.SessionOptions, feeds: Mapping[str, Array], outputs: Outputs
) -> Outputs:
    """Runs `model` into memory of which every bit is set (NaN, or -1), so that what is not written shows.

    `outputs` give the shapes and types; ONNX Runtime checks that the model computes these shapes.
    """
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    poisoned = {
        name: np.full(array.nbytes, 0xFF, np.uint8).view(array.dtype).reshape(array.shape)
        for name, array in outputs.items()
    }
    for name, array in feeds.items():
        binding.bind_input(name, *_binding_arguments(array))
    for name, array in poisoned.items():
        binding.bind_output(name, *_binding_arguments(array))
    session.run_with_iobinding(binding)
    return poisoned


def _binding_arguments(array: Array) -> tuple[str, int, int, tuple[int, ...], int]:
    assert array.flags.c_contiguous
    element_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return "cpu", 0, element_type, array.shape, array.ctypes.data
