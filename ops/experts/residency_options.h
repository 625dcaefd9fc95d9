// How the experts of a session are kept in memory: what its configuration asks for, and what the machine allows.
#pragma once

#include <cstdint>
#include <string>

#include "experts/prefetch_signal.h"

namespace onnx_moe {

enum class ResidencyMode {
  kAuto,       // mapped or pool, by what fits
  kMapped,     // the experts as ONNX Runtime mapped them; the system pages
  kPageCache,  // likewise, and the system is told at once which experts a call needs
  kPool        // slots under a budget, filled by reads
};
const char* name_of(ResidencyMode mode);
ResidencyMode parse_residency(const std::string& text);

enum class DirectIo { kAuto, kOn, kOff };
DirectIo parse_direct_io(const std::string& text);

enum class EvictionPolicy { kLru, kDecayedLfu };
const char* name_of(EvictionPolicy policy);
EvictionPolicy parse_eviction_policy(const std::string& text);

// A number of bytes: "123", "4GiB", "500MB", "60%" (of all experts' bytes) or "auto".
class CacheBudget {
 public:
  static CacheBudget parse(const std::string& text);

  bool automatic() const { return unit_ == Unit::kAutomatic; }
  // `expert_bytes`: all experts of the session; `free_bytes`: what an automatic budget may take. At most expert_bytes.
  int64_t resolve(int64_t expert_bytes, int64_t free_bytes) const;

 private:
  enum class Unit { kAutomatic, kBytes, kPercent };
  Unit unit_ = Unit::kAutomatic;
  double value_ = 0;
};

// Some of the cache's slots: "12" or "25%".
class SlotShare {
 public:
  static SlotShare parse(const char* entry, const std::string& text);
  int64_t resolve(int64_t capacity) const;  // at most the capacity

 private:
  double value_ = 0;
  bool percent_ = false;
};

struct ResidencyOptions {
  ResidencyMode mode = ResidencyMode::kAuto;
  CacheBudget budget;
  EvictionPolicy policy = EvictionPolicy::kDecayedLfu;
  DirectIo direct_io = DirectIo::kAuto;
  int64_t threads = 4;
  PrefetchSignalKind prefetch = PrefetchSignalKind::kNone;
  double prefetch_precision = 0.6;  // share of the reads ahead that must be of use, or else they end
  std::string counters;             // a file to start warm from; empty: none
  std::string save_counters;        // a file to write when the session ends; empty: none
  SlotShare pinned;                 // for the experts that `counters` knows as most used
  bool poison = false;              // tests: overwrite slots that hold no expert any more
};

std::string in_words(int64_t bytes);  // "4.25 GiB"

}  // namespace onnx_moe
