#include "experts/residency_options.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "core/error.h"

namespace onnx_moe {

namespace {

template <typename Value, size_t kCount>
using Choices = std::array<std::pair<const char*, Value>, kCount>;

constexpr Choices<ResidencyMode, 4> kModes{{{"auto", ResidencyMode::kAuto},
                                            {"mapped", ResidencyMode::kMapped},
                                            {"pagecache", ResidencyMode::kPageCache},
                                            {"pool", ResidencyMode::kPool}}};
constexpr Choices<DirectIo, 3> kDirectIo{{{"auto", DirectIo::kAuto}, {"on", DirectIo::kOn}, {"off", DirectIo::kOff}}};
constexpr Choices<EvictionPolicy, 2> kPolicies{
    {{"decayed-lfu", EvictionPolicy::kDecayedLfu}, {"lru", EvictionPolicy::kLru}}};

template <typename Value, size_t kCount>
Value parse_choice(const char* entry, const std::string& text, const Choices<Value, kCount>& choices) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names += names.empty() ? name : std::string(", ") + name;
  }
  fail("session entry ", entry, " is '", text, "': use one of ", names);
}

template <typename Value, size_t kCount>
const char* name_in(const Choices<Value, kCount>& choices, Value wanted) {
  const auto found =
      std::find_if(choices.begin(), choices.end(), [&](const auto& each) { return each.second == wanted; });
  return found->first;
}

constexpr double kKibi = 1024;
constexpr double kKilo = 1000;
constexpr Choices<double, 10> kUnits{{{"", 1},
                                      {"B", 1},
                                      {"KB", kKilo},
                                      {"MB", kKilo * kKilo},
                                      {"GB", kKilo * kKilo * kKilo},
                                      {"TB", kKilo * kKilo * kKilo * kKilo},
                                      {"KiB", kKibi},
                                      {"MiB", kKibi * kKibi},
                                      {"GiB", kKibi * kKibi * kKibi},
                                      {"TiB", kKibi * kKibi * kKibi * kKibi}}};

// Leaves room for what is not experts: activations, the cache of keys and values, other programs.
constexpr double kAutomaticShare = 0.7;

}  // namespace

const char* name_of(ResidencyMode mode) { return name_in(kModes, mode); }
const char* name_of(EvictionPolicy policy) { return name_in(kPolicies, policy); }

ResidencyMode parse_residency(const std::string& text) { return parse_choice("onnx_moe.residency", text, kModes); }
DirectIo parse_direct_io(const std::string& text) { return parse_choice("onnx_moe.direct_io", text, kDirectIo); }
EvictionPolicy parse_eviction_policy(const std::string& text) {
  return parse_choice("onnx_moe.cache_policy", text, kPolicies);
}

CacheBudget CacheBudget::parse(const std::string& text) {
  CacheBudget budget;
  if (text == "auto") return budget;
  char* end = nullptr;
  budget.value_ = std::strtod(text.c_str(), &end);
  const std::string unit = end;
  const auto known = std::find_if(kUnits.begin(), kUnits.end(), [&](const auto& u) { return unit == u.first; });
  const bool percent = unit == "%";
  require(
      end != text.c_str() && std::isfinite(budget.value_) && budget.value_ > 0 && (percent || known != kUnits.end()),
      "session entry onnx_moe.cache_bytes is '", text,
      "': use a number of bytes, such as 4GiB, a share of the experts, such as 60%, or auto");
  budget.unit_ = percent ? Unit::kPercent : Unit::kBytes;
  budget.value_ *= percent ? 0.01 : known->second;
  return budget;
}

int64_t CacheBudget::resolve(int64_t expert_bytes, int64_t free_bytes) const {
  const auto whole = static_cast<double>(expert_bytes);
  const double bytes = unit_ == Unit::kAutomatic ? kAutomaticShare * static_cast<double>(free_bytes)
                       : unit_ == Unit::kPercent ? value_ * whole
                                                 : value_;
  return static_cast<int64_t>(std::min(bytes, whole));
}

SlotShare SlotShare::parse(const char* entry, const std::string& text) {
  SlotShare share;
  char* end = nullptr;
  share.value_ = std::strtod(text.c_str(), &end);
  share.percent_ = std::string(end) == "%";
  const bool number = end != text.c_str() && (share.percent_ || *end == '\0');
  require(number && share.value_ > 0 && (!share.percent_ || share.value_ <= 100), "session entry ", entry, " is '",
          text, "': use a number of experts, such as 64, or a share of the cache, such as 50%");
  return share;
}

int64_t SlotShare::resolve(int64_t capacity) const {
  const double slots = percent_ ? value_ / 100 * static_cast<double>(capacity) : value_;
  return static_cast<int64_t>(std::min(slots, static_cast<double>(capacity)));
}

std::string in_words(int64_t bytes) {
  constexpr std::array<const char*, 5> kNames{"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= kKibi && unit + 1 < kNames.size(); ++unit) value /= kKibi;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", value, kNames[unit]);
  return text;
}

}  // namespace onnx_moe
