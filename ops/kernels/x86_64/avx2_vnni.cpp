#include "kernels/x86_64/avx2.h"

namespace onnx_moe {

namespace {

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("avxvnni");
}

}  // namespace

extern const Kernel kAvx2VnniKernel;
const Kernel kAvx2VnniKernel = VectorKernel<Avx2>::make("avx2_vnni", supported);

}  // namespace onnx_moe
