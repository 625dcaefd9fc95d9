// MoERouter without ONNX Runtime.
#pragma once

#include <cstdint>
#include <string>

#include "core/element_type.h"
#include "core/parallel.h"
#include "kernels/kernel.h"

namespace onnx_moe {

enum class Scoring : int32_t { kSoftmax, kSigmoid, kSqrtSoftplus, kSoftmaxAfterTopK, kSigmoidAfterTopK };
enum class GroupScoring : int32_t { kMax, kTop2Sum };

struct RouterAttributes {
  int64_t top_k = 1;
  Scoring scoring = Scoring::kSoftmax;
  bool normalize = false;
  float norm_epsilon = 0.0f;
  float norm_min = 0.0f;
  float scaling_factor = 1.0f;
  int64_t num_groups = 1;
  int64_t top_k_groups = 1;
  GroupScoring group_scoring = GroupScoring::kMax;
  int64_t num_shared_experts = 0;

  int64_t slots() const { return top_k + num_shared_experts; }
};

struct RouterInput {
  ElementType type;       // of hidden_states
  ElementType gate_type;  // of gate_weight
  ElementType bias_type;  // of gate_bias
  int64_t tokens;
  int64_t hidden_size;
  int64_t num_experts;
  const void* hidden_states;  // the logits when gate_weight is null
  const void* gate_weight;
  const void* gate_bias;
  const float* correction_bias;
  int32_t* expert_ids;
  float* expert_weights;
  float* router_logits;  // may be null
};

// What a router chooses by, besides its matrix. Biases may be null; those that are there have num_experts values.
struct RouterChoice {
  RouterAttributes attributes;
  int64_t num_experts = 0;
  const void* gate_bias = nullptr;
  ElementType bias_type = ElementType::kFloat;
  const float* correction_bias = nullptr;
};

Scoring parse_scoring(const std::string& name);
GroupScoring parse_group_scoring(const std::string& name);

// Throws an Error unless the attributes fit `num_experts`.
void validate(const RouterAttributes& attributes, int64_t num_experts);

void route(const Kernel& kernel, const RouterAttributes& attributes, const RouterInput& input, Host& host);

}  // namespace onnx_moe
