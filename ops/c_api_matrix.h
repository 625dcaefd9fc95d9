// Matrices of the C API as the core has them.
#pragma once

#include "core/quantize.h"
#include "onnx_moe.h"

namespace onnx_moe {

inline BlockFormat block_format(int32_t format, int32_t block_size) {
  return make_block_format(static_cast<Format>(format), block_size);
}

inline Fp4Matrix fp4_matrix(const onnx_moe_fp4_matrix& matrix) {
  return {block_format(matrix.format, matrix.block_size),
          matrix.rows,
          matrix.columns,
          matrix.codes,
          matrix.scales,
          matrix.global_scale};
}

}  // namespace onnx_moe
