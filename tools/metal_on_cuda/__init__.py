"""The Metal kernels translated to CUDA, run on an NVIDIA GPU: python -m tools.metal_on_cuda."""
