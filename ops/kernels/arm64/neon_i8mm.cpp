#include "kernels/arm64/neon.h"

#ifdef __linux__
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace onnx_moe {

namespace {

bool supported() {
#ifdef __linux__
  constexpr unsigned long kHardwareHasMatrixInt8 = 1UL << 13;  // HWCAP2_I8MM
  return (getauxval(AT_HWCAP2) & kHardwareHasMatrixInt8) != 0;
#elif defined(__APPLE__)
  int present = 0;  // from M2 on
  size_t size = sizeof present;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &present, &size, nullptr, 0) == 0 && present != 0;
#else
  return false;
#endif
}

}  // namespace

extern const Kernel kNeonI8mmKernel;
const Kernel kNeonI8mmKernel = VectorKernel<Neon>::make("neon_i8mm", supported);

}  // namespace onnx_moe
