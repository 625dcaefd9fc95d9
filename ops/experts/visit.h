// What a call of a layer does to a cache: the one procedure that the engine and the simulator follow.
#pragma once

#include <cstdint>
#include <vector>

#include "experts/resident_set.h"

namespace onnx_moe {

// A distinct expert of a call; `position` is where the call's ids have it first.
struct VisitedExpert {
  int64_t key;
  int64_t position;
};

// The outcome of looking a call's experts up. Hits hold a lease. Missing experts take slots, in order; those that
// bypass take none: a call that misses more than its layer's share of the cache (a prefill) keeps the ones that its
// last tokens chose, so that it does not push out everybody else's.
struct Visit {
  std::vector<VisitedExpert> hits;
  std::vector<VisitedExpert> missing;
  std::vector<VisitedExpert> bypassing;

  void clear();
};

class VisitPlanner {
 public:
  // share: missing experts of one call that may take slots, at least 1; kNoBypass lets all of them.
  static constexpr int64_t kNoBypass = -1;
  VisitPlanner(const ExpertBank& bank, int64_t share);
  void set_share(int64_t share) { share_ = share; }

  // Looks up experts[count] (ids of `layer`, in range, repetitions allowed) and leases the hits.
  void look_up(ResidentSet& residents, int64_t layer, const int32_t* experts, int64_t count, Visit& visit);

 private:
  void prefetch(const ResidentSet& residents, int64_t layer, const int32_t* experts, int64_t count) const;
  void keep_the_last(Visit& visit);

  ExpertBank bank_;
  int64_t share_;
  int64_t visits_ = 0;
  std::vector<int64_t> last_visit_;     // by key
  std::vector<int64_t> last_position_;  // by key, of the last visit
};

}  // namespace onnx_moe
