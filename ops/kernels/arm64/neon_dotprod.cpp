#include "kernels/arm64/capability.h"
#include "kernels/arm64/neon.h"

namespace onnx_moe {

namespace {

bool supported() {
#ifdef __linux__
  return processor_has(AT_HWCAP, 20);  // HWCAP_ASIMDDP
#else
  return true;  // every Apple Silicon machine has it
#endif
}

}  // namespace

extern const Kernel kNeonDotprodKernel;
constexpr Kernel kNeonDotprodKernel = VectorKernel<Neon>::make("neon_dotprod", supported);

}  // namespace onnx_moe
