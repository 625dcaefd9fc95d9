// Processor features whose names __builtin_cpu_supports does not know in older compilers (clang before 17, GCC before
// 12). Ask for avx2 beside them: that says whether the system saves the registers.
#pragma once

#include <cpuid.h>

namespace onnx_moe {

inline bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
}

inline bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

}  // namespace onnx_moe
