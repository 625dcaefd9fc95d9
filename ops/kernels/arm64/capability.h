// What Linux says of the processor.
#pragma once

#ifdef __linux__
#include <sys/auxv.h>

namespace onnx_moe {

// Whether `bit` of an entry (AT_HWCAP, AT_HWCAP2) of the auxiliary vector is set.
inline bool processor_has(unsigned long entry, int bit) { return (getauxval(entry) >> bit & 1) != 0; }

}  // namespace onnx_moe
#endif
