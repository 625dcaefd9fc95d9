#include "kernels/arm64/neon.h"

namespace onnx_moe {

namespace {

bool supported() { return true; }

}  // namespace

extern const Kernel kNeonKernel;
constexpr Kernel kNeonKernel = VectorKernel<Neon>::make("neon", supported);

}  // namespace onnx_moe
