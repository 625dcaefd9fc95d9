#include "kernels/arm64/neon.h"

#ifdef __linux__
#include <sys/auxv.h>
#endif

namespace onnx_moe {

namespace {

bool supported() {
#ifdef __linux__
  constexpr unsigned long kHardwareHasDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kHardwareHasDotProduct) != 0;
#else
  return true;  // every Apple Silicon machine has it
#endif
}

}  // namespace

extern const Kernel kNeonDotprodKernel;
const Kernel kNeonDotprodKernel = VectorKernel<Neon>::make("neon_dotprod", supported);

}  // namespace onnx_moe
