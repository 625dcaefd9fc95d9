#include "kernels/x86_64/avx512.h"

namespace onnx_moe {

namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

extern const Kernel kAvx512VnniKernel;
constexpr Kernel kAvx512VnniKernel = VectorKernel<Avx512>::make("avx512_vnni", supported);

}  // namespace onnx_moe
