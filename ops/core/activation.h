// The activation of an expert projection, as the operator's attributes describe it.
#pragma once

#include <cstdint>
#include <string>

namespace onnx_moe {

enum class Function : int32_t { kNone, kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };

struct Activation {
  Function function = Function::kNone;
  bool gated = false;
  bool interleaved = false;
  float alpha = 1.0f;  // silu(g) = g · σ(alpha · g)
  float beta = 0.0f;   // added to up
  float limit = 0.0f;  // 0: no clamp

  int64_t output_columns(int64_t rows) const { return gated ? rows / 2 : rows; }
};

Function parse_function(const std::string& name);

// Throws an Error for an option that would do nothing, or that needs an even number of rows.
void validate(const Activation& activation, int64_t rows);

}  // namespace onnx_moe
