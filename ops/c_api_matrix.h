// Matrices of the C API as the core has them.
#pragma once

#include "c_api_types.h"
#include "core/quantize.h"
#include "onnx_moe.h"

namespace onnx_moe {

inline Fp4Matrix fp4_matrix(const onnx_moe_fp4_matrix& matrix) {
  return {block_format(matrix.format, matrix.block_size),
          matrix.rows,
          matrix.columns,
          matrix.codes,
          matrix.scales,
          matrix.global_scale};
}

}  // namespace onnx_moe
