#include "experts/cache_policy.h"

#include <cmath>
#include <limits>
#include <utility>

#include "core/error.h"

namespace onnx_moe {

namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

}  // namespace

DecayedLfuPolicy::DecayedLfuPolicy(const ExpertBank& bank, double decay)
    : bank_(bank), decay_(decay), visits_(static_cast<size_t>(bank.layers)), uses_(static_cast<size_t>(bank.size())) {
  require(decay > 0 && decay <= 1, "decay is ", decay, ": it must lie in (0, 1], such as 0.95");
  constexpr int kPowers = 1024;
  powers_.reserve(kPowers);
  for (int i = 0; i < kPowers; ++i) powers_.push_back(std::pow(decay, i));
}

// A power depends on its exponent alone, so that equal histories give equal bits at any time and in any layer.
double DecayedLfuPolicy::power(int64_t exponent) const {
  const auto index = static_cast<size_t>(exponent);
  return index < powers_.size() ? powers_[index] : std::pow(decay_, static_cast<double>(exponent));
}

int64_t DecayedLfuPolicy::age(int64_t key) const {
  return visits_[static_cast<size_t>(bank_.layer_of(key))] - uses_[static_cast<size_t>(key)].visit;
}

void DecayedLfuPolicy::use(int64_t key) {
  const int64_t since = age(key);
  Use& use = uses_[static_cast<size_t>(key)];
  use.frequency = use.frequency * power(since) + 1;
  use.visit += since;
}

bool DecayedLfuPolicy::goes_before(int64_t a, int64_t b) const {
  // Only the difference of ages enters: within a layer it stays the same however many visits pass.
  const int64_t older = age(a) - age(b);
  const double of_a = uses_[static_cast<size_t>(a)].frequency;
  const double of_b = uses_[static_cast<size_t>(b)].frequency;
  return older >= 0 ? of_a * power(older) < of_b : of_a < of_b * power(-older);
}

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
