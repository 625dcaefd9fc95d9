// Quantising to FP4 and decoding, row by row.
#pragma once

#include <cstdint>

#include "core/element_type.h"
#include "core/fp4.h"
#include "kernels/kernel.h"

namespace onnx_moe {

enum class ScaleRule : int32_t { kMse = 0, kEven = 1, kCeil = 2, kFloor = 3, kRceil = 4 };

// A matrix in FP4; scales as the format stores them.
struct Fp4Matrix {
  BlockFormat format;
  int64_t rows;
  int64_t columns;
  uint8_t* codes;
  void* scales;
  float global_scale;
};

// Rounds weights / (block scale · global_scale) to the nearest code, ties to even, and saturates at ±6. Throws an
// Error for a NaN or an infinity. A block of zeros gets the scale that the rule gives its maximum of 0.
void quantize(const Kernel& kernel, const void* weights, ElementType type, ScaleRule rule, const Fp4Matrix& matrix);

void dequantize(const Fp4Matrix& matrix, float* weights);

}  // namespace onnx_moe
