"""The operators for onnx.reference.ReferenceEvaluator, computed by the Torch reference.

ReferenceEvaluator(model, new_ops=onnx_moe.reference_evaluator.OPERATORS)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from onnx.reference.op_run import OpRun

from onnx_moe.operators import BLOCK, DOMAIN, block_parts, get_operator
from onnx_moe.reference import expert_gemm, router

# onnx holds bfloat16 in ml_dtypes' type, which Torch does not take: both are passed as their 16 bits.
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def _tensors(arrays: Sequence[np.ndarray | None]) -> list[Any]:
    """The arrays as tensors; an omitted input is None."""
    return [None if array is None else _to_torch(array) for array in arrays]


def _to_torch(array: np.ndarray) -> torch.Tensor:
    array = np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_BFLOAT16)
    return tensor.numpy()


class MoERouter(OpRun):
    """Runs a MoERouter node."""

    op_domain = DOMAIN

    def _run(self, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray, ...]:
        outputs = router(*_tensors(inputs), **attributes)
        return tuple(_to_numpy(output) for output in outputs[: len(self.onnx_node.output)])


class MoEExpertGemmFP4(OpRun):
    """Runs a MoEExpertGemmFP4 node."""

    op_domain = DOMAIN

    def _run(self, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray, ...]:
        return (_to_numpy(expert_gemm(*_tensors(inputs), **attributes)),)


class MoEBlockFP4(OpRun):
    """Runs a MoEBlockFP4 node: the router and both projections one after the other."""

    op_domain = DOMAIN

    def _run(self, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray, ...]:
        missing = len(get_operator(BLOCK).inputs) - len(inputs)
        hidden, *tensors = _tensors([*inputs, *[None] * missing])
        of_router, of_gate_up, of_down = block_parts(attributes)
        ids, weights, _ = router(hidden, *tensors[:3], **of_router)
        codes, scales, global_scale, bias = tensors[3:7]
        intermediate = expert_gemm(hidden, ids, codes, scales, global_scale, bias, **of_gate_up)
        codes, scales, global_scale, bias = tensors[7:11]
        return (_to_numpy(expert_gemm(intermediate, ids, codes, scales, global_scale, bias, weights, **of_down)),)


#: What ReferenceEvaluator takes as `new_ops`.
OPERATORS: list[type[OpRun]] = [MoERouter, MoEExpertGemmFP4, MoEBlockFP4]
