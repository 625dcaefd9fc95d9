// What a session's experts need and what they get: the mode, the budget and its slots.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "experts/bank.h"
#include "experts/expert_layer.h"
#include "experts/residency_options.h"

namespace onnx_moe {

struct ResidencyPlan {
  ResidencyMode mode = ResidencyMode::kMapped;
  std::string reason;
  std::string unused;  // entries for a cache, where there is none
  bool direct_io = false;
  int64_t expert_bytes = 0;  // all experts
  int64_t budget_bytes = 0;
};

// The experts of a session, and what the first of its inputs is called that is no mapped file (empty: all are).
struct ExpertLayers {
  std::vector<ExpertLayer> layers;
  std::string unmapped;

  int64_t num_experts() const;
  int64_t top_k() const;  // the most of any layer
  int64_t cycle() const;  // experts that one token uses on its way through all layers
  int64_t bytes() const;
};

// slot_bytes: of a slot that any expert fits into. Throws an Error when the options ask for what cannot be.
ResidencyPlan make_plan(const ResidencyOptions& options, const ExpertLayers& experts, int64_t slot_bytes);

// Slots of experts that bypass the cache: enough for the readers to go on while some are computed.
inline constexpr int64_t kMostStaging = 8;
// Slots of experts that are read ahead of their use.
inline constexpr int64_t kMostSpeculative = 8;

// How a budget is divided.
struct SlotCounts {
  int64_t capacity;     // of the cache
  int64_t staging;      // for experts that bypass it
  int64_t layer_floor;  // of the capacity, each layer's own
  int64_t speculative;  // for experts that are read ahead; 0 where all experts have a slot
  int64_t share;        // missing experts of one call that may enter the cache, or VisitPlanner::kNoBypass
};

// Throws an Error that says what is needed when the budget is below what one token's cycle through all layers takes.
SlotCounts divide_budget(int64_t budget_bytes, int64_t slot_bytes, const ExpertLayers& experts, bool prefetches);
// The least budget.
int64_t cycle_bytes(int64_t slot_bytes, const ExpertLayers& experts, bool prefetches);

}  // namespace onnx_moe
