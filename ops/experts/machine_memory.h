// How much memory the machine, or the control groups of this process, have.
#pragma once

#include <cstdint>

namespace onnx_moe {

// Bytes that this process may still take; 0 when the system does not tell.
int64_t available_memory();
// Of the machine, or of a control group whose limit is less; 0 likewise.
int64_t total_memory();

}  // namespace onnx_moe
