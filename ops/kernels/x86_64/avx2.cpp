#include "kernels/x86_64/avx2.h"
#include "kernels/x86_64/features.h"

namespace onnx_moe {

namespace {

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

}  // namespace

extern const Kernel kAvx2Kernel;
constexpr Kernel kAvx2Kernel = VectorKernel<Avx2>::make("avx2", supported);

}  // namespace onnx_moe
