// Quantising to FP4 and decoding, row by row.
#pragma once

#include <cstdint>

#include "core/block_scales.h"
#include "core/element_type.h"
#include "core/fp4.h"
#include "kernels/kernel.h"

namespace onnx_moe {

// A matrix in FP4; scales as the format stores them.
struct Fp4Matrix {
  BlockFormat format;
  int64_t rows;
  int64_t columns;
  uint8_t* codes;
  void* scales;
  float global_scale;
};

// A scale as the format stores it, by its index in `matrix`.
inline void store_scale_code(const Fp4Matrix& matrix, int64_t index, int code) {
  if (matrix.format.format == Format::kFp4) {
    static_cast<uint16_t*>(matrix.scales)[index] = static_cast<uint16_t>(code);
  } else {
    static_cast<uint8_t*>(matrix.scales)[index] = static_cast<uint8_t>(code);
  }
}

inline int load_scale_code(const Fp4Matrix& matrix, int64_t index) {
  if (matrix.format.format == Format::kFp4) return static_cast<const uint16_t*>(matrix.scales)[index];
  return static_cast<const uint8_t*>(matrix.scales)[index];
}

// Weights to quantise. importance: float [columns] ≥ 0, multiplies the squared errors of a column for kMse; may be
// null.
struct SourceMatrix {
  const void* weights;
  ElementType type;
  const float* importance;
};

// Rounds weights / (block scale · global_scale) to the nearest code, ties to even, and saturates at ±6. Throws an
// Error for a NaN or an infinity. A block of zeros gets the scale that the rule gives its maximum of 0.
void quantize(const Kernel& kernel, const SourceMatrix& source, ScaleRule rule, const Fp4Matrix& matrix);

// The global scale for `matrix`, of which format, rows and columns count. 1 where the format has none; maximum /
// (6·448) for the rules; for kMse, of that and seven larger ones, which leave room to store the maximum as 4 and move
// the grid of block scales, the one with the least error on a sample of rows.
float choose_global_scale(const Kernel& kernel, const SourceMatrix& source, ScaleRule rule, const Fp4Matrix& matrix);

void dequantize(const Fp4Matrix& matrix, float* weights);

}  // namespace onnx_moe
