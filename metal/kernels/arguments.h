// What the host and the kernels must agree on: one definition for C++ and for the Metal Shading Language.
#pragma once

#ifdef __METAL_VERSION__
#define SHARED_SIZE constant constexpr uint
#else
#include <cstdint>
#define SHARED_SIZE inline constexpr uint32_t
#endif

SHARED_SIZE SIMD_WIDTH = 32;
// Weight rows that a simdgroup multiplies together, where it multiplies vectors.
SHARED_SIZE VECTOR_ROWS = 4;
// Assignments of an expert that share its decoded weights there.
SHARED_SIZE FEW_ASSIGNMENTS = 8;
// A side of the grouped product's tile, and the threads that compute it.
SHARED_SIZE GROUPED_TILE = 32;
SHARED_SIZE GROUPED_THREADS = 128;
// Slots of a token that one threadgroup combines.
SHARED_SIZE COMBINED_SLOTS = 64;
// Experts to choose among, and experts that a token gets: chosen, and shared ones as many again.
SHARED_SIZE ROUTER_EXPERTS = 1024;
SHARED_SIZE ROUTER_SLOTS = 32;

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
