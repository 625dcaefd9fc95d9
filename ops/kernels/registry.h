// The kernels that were compiled in, and the one in use.
#pragma once

#include "kernels/kernel.h"

namespace onnx_moe {

// Kernels that this machine can run, best first; null past the end.
const Kernel* available_kernel(int index);

// The kernel in use: the last use_kernel, else ONNX_MOE_KERNEL, else the best. Throws an Error for a name that this
// machine lacks.
const Kernel& current_kernel();

// `name` from available_kernel, or "auto".
void use_kernel(const char* name);

}  // namespace onnx_moe
