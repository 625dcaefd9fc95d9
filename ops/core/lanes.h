// Sixteen values at once, for code that is compiled for several vector widths: the compiler splits or joins them.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/fp4.h"

// Functions that work on lanes; where the loader can choose, they are compiled for wider vectors too.
#if defined(__x86_64__) && defined(__linux__)
#define ONNX_MOE_WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define ONNX_MOE_WIDE
#endif
// Into the functions above, so that they are compiled as those are.
#define ONNX_MOE_INLINE __attribute__((always_inline)) inline

namespace onnx_moe {

inline constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(64)));
typedef uint32_t LaneWords __attribute__((vector_size(64)));
static_assert(sizeof(Lanes) == kLanes * sizeof(float));

ONNX_MOE_INLINE void load(const float* values, Lanes& lanes) { std::memcpy(&lanes, values, sizeof lanes); }
ONNX_MOE_INLINE void store(const Lanes& lanes, float* values) { std::memcpy(values, &lanes, sizeof lanes); }
ONNX_MOE_INLINE void broadcast(float value, Lanes& lanes) { lanes = value - Lanes{}; }

ONNX_MOE_INLINE void absolute(Lanes& lanes) { lanes = (Lanes)((LaneWords)lanes & 0x7FFFFFFFu); }

// Rounds values ≥ 0 to the nearest E2M1 value, ties to even, saturated at 6: adding 1.5·2^23 steps rounds to a step.
ONNX_MOE_INLINE void round_to_e2m1(Lanes& lanes) {
  const Lanes below_four = lanes < 2.0f ? Lanes{} + 6291456.0f : Lanes{} + 12582912.0f;
  const Lanes shift = lanes < 4.0f ? below_four : Lanes{} + 25165824.0f;
  const Lanes rounded = (lanes + shift) - shift;
  lanes = rounded > kE2M1Max ? Lanes{} + kE2M1Max : rounded;
}

// Codes of E2M1 values ≥ 0: from 1 on, exponent and mantissa bits of a value count up in step with its code.
ONNX_MOE_INLINE void e2m1_codes(const Lanes& values, LaneWords& codes) {
  const LaneWords small = __builtin_convertvector(values + values, LaneWords);
  codes = values < 1.0f ? small : ((LaneWords)values >> 22) - 252u;
}

// Sum in a fixed order: the same on every machine.
ONNX_MOE_INLINE float sum(const Lanes& lanes) {
  float part[kLanes];
  store(lanes, part);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
}

}  // namespace onnx_moe
