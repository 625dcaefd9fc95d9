#include "kernels/x86_64/avx512.h"

namespace onnx_moe {

namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

extern const Kernel kAvx512Kernel;
constexpr Kernel kAvx512Kernel = VectorKernel<Avx512>::make("avx512", supported);

}  // namespace onnx_moe
