// Replays recorded routing against a cache of experts.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "experts/bank.h"
#include "experts/cache_policy.h"
#include "experts/visit.h"

namespace onnx_moe {

// Calls of layers: visit v is of layers[v] and chose experts[offsets[v]] … experts[offsets[v + 1] - 1], in any number
// and with repetitions. Throws an Error in check() for anything out of range.
struct RoutingTrace {
  int64_t visits;
  const int32_t* layers;
  const int64_t* offsets;
  const int32_t* experts;

  void check(const ExpertBank& bank) const;
};

// Keys that replaying the trace uses, in order: each visit's distinct experts, by their first occurrence.
std::vector<int64_t> uses_of(const ExpertBank& bank, const RoutingTrace& trace);

enum class Outcome : uint8_t { kMiss = 0, kHit = 1, kRepeated = 2 };  // repeated: chosen earlier in the same visit

struct CacheCounts {
  int64_t hits = 0;
  int64_t misses = 0;
  int64_t evictions = 0;
  int64_t bypassed = 0;  // of the misses: those that took no slot
};

struct CacheSetup {
  ExpertBank bank;
  int64_t capacity;
  int64_t layer_floor;
  int64_t share;                   // missing experts of one call that may take slots, or VisitPlanner::kNoBypass
  std::vector<int64_t> preloaded;  // keys that hold a slot at the start
};

// outcomes and evicted (either may be null): for each of the trace's experts, whether it was there, and the key that
// gave up its slot for it (-1: none did).
CacheCounts simulate_cache(const CacheSetup& setup, std::unique_ptr<CachePolicy> policy, const RoutingTrace& trace,
                           Outcome* outcomes, int64_t* evicted);

}  // namespace onnx_moe
