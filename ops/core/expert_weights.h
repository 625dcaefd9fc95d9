// The operands of MoEExpertGemmFP4: the experts' weights, and what a call multiplies with them.
#pragma once

#include <cstdint>

#include "core/element_type.h"
#include "core/fp4.h"
#include "kernels/kernel.h"

namespace onnx_moe {

// One expert's codes and scales.
struct ExpertData {
  const uint8_t* codes;
  const uint8_t* scales;
};

// The experts' projection. Sizes as in the operator: E = num_experts, N = rows, K = columns.
struct ExpertWeights {
  BlockFormat format;
  WeightLayout layout;
  int64_t num_experts;
  int64_t rows;
  int64_t columns;
  const uint8_t* codes;
  const void* scales;
  const float* global_scale;  // null, [E] or [E, 2]
  int64_t global_scales;      // 1 or 2
  ElementType bias_type;
  const void* bias;  // null or [E, N]
  // [E]: where the experts are that a call works on, when `codes` and `scales` are not what it reads.
  const ExpertData* resident = nullptr;

  ExpertWeights at(const ExpertData* experts) const {
    ExpertWeights weights = *this;
    weights.resident = experts;
    return weights;
  }
  int64_t expert_code_bytes() const { return rows * columns / 2; }
  int64_t expert_scale_bytes() const { return rows * format.blocks(columns) * format.scale_bytes(); }
  ExpertData expert(int64_t index) const {
    if (resident) return resident[index];
    return {codes + index * expert_code_bytes(), static_cast<const uint8_t*>(scales) + index * expert_scale_bytes()};
  }
};

struct ExpertGemmInput {
  ElementType type;  // of x and y
  Precision precision;
  int64_t tokens;
  int64_t slots;
  bool x_per_slot;
  const void* x;
  const int32_t* expert_ids;
  const float* expert_weights;  // null: no combine
  void* y;
};

}  // namespace onnx_moe
