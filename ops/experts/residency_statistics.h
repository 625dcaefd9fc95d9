// What the residency engine of a session has done.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "experts/speculation.h"

namespace onnx_moe {

struct LayerResidency {
  std::string node;
  int64_t expert_bytes = 0;  // of one
  int64_t hits = 0;
  int64_t misses = 0;
  int64_t resident = 0;
  bool prefetching = false;
  PrefetchCounts prefetch;
};

// A lookup is one distinct expert of one call: hits + misses = lookups. Bytes that were read = Σ (misses − joined −
// prefetch.timely − prefetch.late) × the bytes of an expert + speculative_bytes + warm_start_bytes.
struct ResidencyStatistics {
  std::string mode;    // mapped, pagecache or pool
  std::string reason;  // why this one
  std::string unused;  // entries for a cache that is not there
  std::string policy;
  bool direct_io = false;
  int64_t expert_bytes = 0;  // of all experts
  int64_t budget_bytes = 0;
  int64_t cycle_bytes = 0;  // the least budget: what one token needs
  int64_t slot_bytes = 0;
  int64_t capacity = 0;  // experts that the cache holds
  int64_t staging = 0;   // slots of experts that bypass it
  // As in SlotCounts.
  int64_t layer_floor = 0;
  int64_t share = 0;
  int64_t resident = 0;
  int64_t calls = 0;
  int64_t hits = 0;
  int64_t misses = 0;
  int64_t bypassed = 0;  // of the misses
  int64_t joined = 0;    // misses that waited for another call's load
  int64_t evictions = 0;
  int64_t pinned = 0;  // experts that go last
  std::string prefetch_signal;
  double prefetch_precision = 0;  // the least
  int64_t speculative_slots = 0;
  int64_t speculative_bytes = 0;  // read ahead, of use or not
  int64_t warm_start_bytes = 0;   // read because a file of counters had it
  int64_t waves = 0;              // beyond a call's first
  int64_t bytes_read = 0;
  int64_t failed_loads = 0;
  int64_t stall_ns = 0;        // calls waited for reads
  int64_t bookkeeping_ns = 0;  // all else that the cache took of calls' time
  std::vector<LayerResidency> layers;

  std::string to_json() const;
};

}  // namespace onnx_moe
