// Whether the device computes what the CPU does: nobody may get a wrong number because a compiler or driver that this
// project has never seen takes a kernel differently.
#pragma once

#include <string>

#include "core/accelerator.h"

namespace onnx_moe::metal {

// Computes small blocks, one for each regime and together in all formats, on `device` and with the CPU kernel. What
// differs or fails, in a sentence; empty where all agree. Some milliseconds, and the compilation of every kernel file.
std::string self_test(Accelerator& device, ElementType type);

}  // namespace onnx_moe::metal
