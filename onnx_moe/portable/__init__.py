"""Bodies of both operators in standard ONNX operators, for runtimes without the plugin.

Written for ONNX Runtime's CPU provider: float32 inside (it lacks many float16 and bfloat16 kernels), FP4
codes as uint8, and no operator of which the result for a NaN or a tie is left open.
"""
