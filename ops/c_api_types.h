// The C API's numbers as the core's types.
#pragma once

#include <cstdint>

#include "core/element_type.h"
#include "core/error.h"
#include "core/fp4.h"
#include "onnx_moe.h"

namespace onnx_moe {

inline ElementType element_type(int32_t type) {
  require(type == ONNX_MOE_FLOAT || type == ONNX_MOE_FLOAT16 || type == ONNX_MOE_BFLOAT16, "element type ", type,
          " is unknown: use ONNX_MOE_FLOAT, ONNX_MOE_FLOAT16 or ONNX_MOE_BFLOAT16");
  return static_cast<ElementType>(type);
}

inline BlockFormat block_format(int32_t format, int32_t block_size) {
  return make_block_format(static_cast<Format>(format), block_size);
}

}  // namespace onnx_moe
