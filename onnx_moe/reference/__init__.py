"""Both operators in plain Torch: the specification that every kernel is validated against.

Importing this package registers `torch.ops.onnx_moe.router` and `torch.ops.onnx_moe.expert_gemm_fp4`.
"""

from onnx_moe.reference.decode import decode_weights
from onnx_moe.reference.expert_gemm import expert_gemm
from onnx_moe.reference.router import router
from onnx_moe.reference.torch_ops import expert_gemm_op, router_op

__all__ = ["decode_weights", "expert_gemm", "expert_gemm_op", "router", "router_op"]
