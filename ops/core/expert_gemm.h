// MoEExpertGemmFP4 without ONNX Runtime: dispatch, tiles, epilogue, combine.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/dispatch.h"
#include "core/element_type.h"
#include "core/fp4.h"
#include "core/parallel.h"
#include "kernels/kernel.h"

namespace onnx_moe {

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

// Same inputs, same bytes: how a product is summed depends on shapes and routing alone, never on threads or tiles.
void expert_gemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
                 const ExpertGemmInput& input, Host& host);

// The same with the assignments already grouped by expert.
void expert_gemm(const Kernel& kernel, const Activation& activation, const ExpertWeights& weights,
                 const ExpertGemmInput& input, const ExpertGroups& groups, Host& host);

// The precision that an accuracy_level of the operators allows.
Precision precision_of(int64_t accuracy_level);

// Throws an Error unless N = `rows` rows can lie in the layout.
void validate(WeightLayout layout, int64_t rows, const Activation& activation);

// Throws an Error unless sizes, format and activation fit together.
void validate(const ExpertWeights& weights, const Activation& activation);

}  // namespace onnx_moe
