#include "experts/cache_policy.h"

#include <limits>
#include <utility>

#include "core/error.h"

namespace onnx_moe {

namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

}  // namespace

BeladyPolicy::BeladyPolicy(const ExpertBank& bank, std::vector<int64_t> uses)
    : uses_(std::move(uses)), next_(uses_.size()), next_use_(static_cast<size_t>(bank.size()), kNever) {
  for (size_t i = uses_.size(); i-- > 0;) {
    int64_t& upcoming = next_use_[static_cast<size_t>(uses_[i])];
    next_[i] = upcoming;
    upcoming = static_cast<int64_t>(i);
  }
}

void BeladyPolicy::use(int64_t key) {
  require(position_ < uses_.size() && uses_[position_] == key, "use ", position_, " is of expert key ", key,
          ", which is not what Belady's policy was told: give it the trace that is replayed");
  next_use_[static_cast<size_t>(key)] = next_[position_++];
}

bool BeladyPolicy::goes_before(int64_t a, int64_t b) const {
  return next_use_[static_cast<size_t>(a)] > next_use_[static_cast<size_t>(b)];
}

PinnedPolicy::PinnedPolicy(const ExpertBank& bank, const std::vector<int64_t>& pinned,
                           std::unique_ptr<CachePolicy> others)
    : pinned_(static_cast<size_t>(bank.size())), others_(std::move(others)) {
  for (const int64_t key : pinned) {
    require(key >= 0 && key < bank.size(), "pinned expert key ", key, " is out of range: keys are 0 to ",
            bank.size() - 1);
    pinned_[static_cast<size_t>(key)] = true;
  }
}

bool PinnedPolicy::goes_before(int64_t a, int64_t b) const {
  const bool a_stays = pinned_[static_cast<size_t>(a)];
  const bool b_stays = pinned_[static_cast<size_t>(b)];
  return a_stays == b_stays ? others_->goes_before(a, b) : b_stays;
}

}  // namespace onnx_moe
