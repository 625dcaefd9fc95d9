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

// AVX-512 BF16, tiles, and their products of bfloat16 (AMX-TILE, AMX-BF16).
inline bool has_bfloat_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool vectors = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0;
  return vectors && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 1) != 0 && (d >> 22 & 1) != 0;
}

}  // namespace onnx_moe
