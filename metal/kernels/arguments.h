// What the host tells each kernel: one definition for C++ and for the Metal Shading Language.
#pragma once

#ifndef __METAL_VERSION__
#include <cstdint>
#endif

// Sizes of an expert projection, in the operators' letters: E = num_experts, N = rows, K = columns, k = slots.
struct ExpertGemmArguments {
  uint32_t assignments;  // tokens · k
  uint32_t slots;
  uint32_t num_experts;
  uint32_t rows;
  uint32_t columns;
  uint32_t output_columns;  // N, or N / 2 where gated
  uint32_t x_per_slot;
  uint32_t global_scales;  // an expert: 1, or 2 (gate, up)
  float alpha;
  float beta;
  float limit;
};

struct GroupingArguments {
  uint32_t assignments;
  uint32_t num_experts;
};

struct CombineArguments {
  uint32_t tokens;
  uint32_t slots;
  uint32_t columns;
};

struct RouterArguments {
  uint32_t tokens;
  uint32_t hidden_size;
  uint32_t num_experts;
  uint32_t top_k;
  uint32_t num_groups;
  uint32_t top_k_groups;
  uint32_t num_shared_experts;
  float norm_epsilon;
  float norm_min;
  float scaling_factor;
};
