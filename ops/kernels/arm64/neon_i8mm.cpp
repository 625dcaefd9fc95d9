#include "kernels/arm64/neon.h"

#ifdef __linux__
#include <sys/auxv.h>
#endif

namespace onnx_moe {

namespace {

bool supported() {
#ifdef __linux__
  constexpr unsigned long kHardwareHasMatrixInt8 = 1UL << 13;  // HWCAP2_I8MM
  return (getauxval(AT_HWCAP2) & kHardwareHasMatrixInt8) != 0;
#else
  return false;
#endif
}

}  // namespace

extern const Kernel kNeonI8mmKernel;
const Kernel kNeonI8mmKernel = VectorKernel<Neon>::make("neon_i8mm", supported);

}  // namespace onnx_moe
