#include "kernels/arm64/capability.h"
#include "kernels/arm64/neon.h"

namespace onnx_moe {

namespace {

bool supported() { return processor_has(AT_HWCAP, 20) && processor_has(AT_HWCAP2, 13); }  // ASIMDDP, I8MM

}  // namespace

extern const Kernel kNeonI8mmKernel;
constexpr Kernel kNeonI8mmKernel = VectorKernel<Neon>::make("neon_i8mm", supported);

}  // namespace onnx_moe
