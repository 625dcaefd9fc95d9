// As avx512_vnni, for processors (from Ice Lake on) whose lookup of a byte reads it whole: no mask before it.
#include "kernels/x86_64/avx512.h"

namespace onnx_moe {

extern const Kernel kAvx512VnniKernel;

namespace {

bool supported() { return kAvx512VnniKernel.supported() && __builtin_cpu_supports("avx512vbmi"); }

}  // namespace

extern const Kernel kAvx512VbmiKernel;
constexpr Kernel kAvx512VbmiKernel = VectorKernel<Avx512>::make("avx512_vbmi", supported);

}  // namespace onnx_moe
