#include "kernels/x86_64/avx2.h"
#include "kernels/x86_64/features.h"

namespace onnx_moe {

namespace {

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() && has_avx_vnni();
}

}  // namespace

extern const Kernel kAvx2VnniKernel;
constexpr Kernel kAvx2VnniKernel = VectorKernel<Avx2>::make("avx2_vnni", supported);

}  // namespace onnx_moe
