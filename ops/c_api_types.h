// The C API's numbers as the core's types.
#pragma once

#include <cstdint>

#include "core/element_type.h"
#include "core/error.h"
#include "onnx_moe.h"

namespace onnx_moe {

inline ElementType element_type(int32_t type) {
  require(type == ONNX_MOE_FLOAT || type == ONNX_MOE_FLOAT16 || type == ONNX_MOE_BFLOAT16, "element type ", type,
          " is unknown: use ONNX_MOE_FLOAT, ONNX_MOE_FLOAT16 or ONNX_MOE_BFLOAT16");
  return static_cast<ElementType>(type);
}

}  // namespace onnx_moe
