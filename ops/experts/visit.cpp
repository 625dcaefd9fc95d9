#include "experts/visit.h"

#include <algorithm>
#include <iterator>

namespace onnx_moe {

void Visit::clear() {
  hits.clear();
  missing.clear();
  bypassing.clear();
}

VisitPlanner::VisitPlanner(const ExpertBank& bank, int64_t share)
    : bank_(bank),
      share_(share),
      last_visit_(static_cast<size_t>(bank.size()), 0),
      last_position_(static_cast<size_t>(bank.size())) {}

void VisitPlanner::look_up(ResidentSet& residents, int64_t layer, const int32_t* experts, int64_t count, Visit& visit) {
  visit.clear();
  ++visits_;
  residents.begin_visit(layer);
  prefetch(residents, layer, experts, std::min(count, bank_.experts));
  for (int64_t position = 0; position < count; ++position) {
    const int64_t key = bank_.key(layer, experts[position]);
    last_position_[static_cast<size_t>(key)] = position;
    int64_t& last = last_visit_[static_cast<size_t>(key)];
    if (last == visits_) continue;
    last = visits_;
    if (residents.contains(key)) {
      residents.lease(key);  // before its use: who is leased needs no new place among those that may go
      visit.hits.push_back({key, position});
    } else {
      visit.missing.push_back({key, position});
    }
    residents.use(key);
  }
  if (share_ != kNoBypass && static_cast<int64_t>(visit.missing.size()) > share_) keep_the_last(visit);
}

// After a layer's weights nothing of this is in a cache; waiting for one line after the other
// was 5 of 10 us a call of eight experts.
void VisitPlanner::prefetch(const ResidentSet& residents, int64_t layer, const int32_t* experts, int64_t count) const {
  for (int64_t position = 0; position < count; ++position) {
    const int64_t key = bank_.key(layer, experts[position]);
    residents.prefetch(key);
    __builtin_prefetch(&last_visit_[static_cast<size_t>(key)], 1);
    __builtin_prefetch(&last_position_[static_cast<size_t>(key)], 1);
  }
}

void VisitPlanner::keep_the_last(Visit& visit) {
  std::vector<int64_t> positions;
  for (const VisitedExpert& expert : visit.missing) {
    positions.push_back(last_position_[static_cast<size_t>(expert.key)]);
  }
  const auto first_kept = positions.end() - share_;
  std::nth_element(positions.begin(), first_kept, positions.end());
  const auto bypasses = [&](const VisitedExpert& expert) {
    return last_position_[static_cast<size_t>(expert.key)] < *first_kept;
  };
  std::copy_if(visit.missing.begin(), visit.missing.end(), std::back_inserter(visit.bypassing), bypasses);
  visit.missing.erase(std::remove_if(visit.missing.begin(), visit.missing.end(), bypasses), visit.missing.end());
}

}  // namespace onnx_moe
