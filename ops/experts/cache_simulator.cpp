#include "experts/cache_simulator.h"

#include <optional>
#include <utility>

#include "core/error.h"
#include "experts/resident_set.h"

namespace onnx_moe {

namespace {

// Calls body(position in the trace, key, whether the visit chose it before) for every expert of a visit.
class DistinctExperts {
 public:
  DistinctExperts(const ExpertBank& bank, const RoutingTrace& trace)
      : bank_(bank), trace_(trace), last_visit_(static_cast<size_t>(bank.size()), -1) {}

  template <typename Body>
  void for_each(int64_t visit, Body&& body) {
    for (int64_t i = trace_.offsets[visit]; i < trace_.offsets[visit + 1]; ++i) {
      const int64_t key = bank_.key(trace_.layers[visit], trace_.experts[i]);
      int64_t& last = last_visit_[static_cast<size_t>(key)];
      body(i, key, last == visit);
      last = visit;
    }
  }

 private:
  ExpertBank bank_;
  RoutingTrace trace_;
  std::vector<int64_t> last_visit_;  // by key
};

class Replay {
 public:
  Replay(const CacheSetup& setup, std::unique_ptr<CachePolicy> policy, const RoutingTrace& trace, Outcome* outcomes,
         int64_t* evicted)
      : residents_(setup.bank, setup.capacity, setup.layer_floor, std::move(policy)),
        distinct_(setup.bank, trace),
        trace_(trace),
        outcomes_(outcomes),
        evicted_(evicted) {
    for (const int64_t key : setup.preloaded) {
      require(key >= 0 && key < setup.bank.size(), "preloaded expert key ", key, " is out of range: keys are 0 to ",
              setup.bank.size() - 1);
      residents_.insert(key);
    }
  }

  CacheCounts run() {
    for (int64_t visit = 0; visit < trace_.visits; ++visit) {
      look_up(visit);
      for (const auto& [position, key] : missing_) load(visit, position, key);
      release_all();
    }
    return counts_;
  }

 private:
  void look_up(int64_t visit) {
    residents_.begin_visit(trace_.layers[visit]);
    missing_.clear();
    distinct_.for_each(visit, [&](int64_t position, int64_t key, bool repeated) {
      if (evicted_) evicted_[position] = -1;
      if (repeated) return note(position, Outcome::kRepeated);
      residents_.use(key);
      const bool hit = residents_.contains(key);
      note(position, hit ? Outcome::kHit : Outcome::kMiss);
      ++(hit ? counts_.hits : counts_.misses);
      if (hit) {
        lease(key);
      } else {
        missing_.emplace_back(position, key);
      }
    });
  }

  void load(int64_t visit, int64_t position, int64_t key) {
    if (residents_.full()) {
      const int64_t layer = trace_.layers[visit];
      std::optional<int64_t> victim = residents_.victim(layer);
      if (!victim) {  // a wave ends here
        release_all();
        victim = residents_.victim(layer);
      }
      residents_.erase(*victim);
      ++counts_.evictions;
      if (evicted_) evicted_[position] = *victim;
    }
    residents_.insert(key);
    lease(key);
  }

  void note(int64_t position, Outcome outcome) {
    if (outcomes_) outcomes_[position] = outcome;
  }

  void lease(int64_t key) {
    residents_.lease(key);
    leased_.push_back(key);
  }

  void release_all() {
    for (const int64_t key : leased_) residents_.release(key);
    leased_.clear();
  }

  ResidentSet residents_;
  DistinctExperts distinct_;
  RoutingTrace trace_;
  Outcome* outcomes_;
  int64_t* evicted_;
  CacheCounts counts_;
  std::vector<std::pair<int64_t, int64_t>> missing_;  // position in the trace and key
  std::vector<int64_t> leased_;
};

}  // namespace

void RoutingTrace::check(const ExpertBank& bank) const {
  for (int64_t visit = 0; visit < visits; ++visit) {
    require(layers[visit] >= 0 && layers[visit] < bank.layers, "visit ", visit, " is of layer ", layers[visit],
            ", but layers are numbered 0 to ", bank.layers - 1);
    require(offsets[visit] <= offsets[visit + 1], "visit ", visit, " ends at ", offsets[visit + 1],
            ", before it begins at ", offsets[visit]);
    for (int64_t i = offsets[visit]; i < offsets[visit + 1]; ++i) {
      require(experts[i] >= 0 && experts[i] < bank.experts, "visit ", visit, " holds expert ", experts[i],
              ", but experts are numbered 0 to ", bank.experts - 1);
    }
  }
}

std::vector<int64_t> uses_of(const ExpertBank& bank, const RoutingTrace& trace) {
  std::vector<int64_t> uses;
  DistinctExperts distinct(bank, trace);
  for (int64_t visit = 0; visit < trace.visits; ++visit) {
    distinct.for_each(visit, [&](int64_t, int64_t key, bool repeated) {
      if (!repeated) uses.push_back(key);
    });
  }
  return uses;
}

CacheCounts simulate_cache(const CacheSetup& setup, std::unique_ptr<CachePolicy> policy, const RoutingTrace& trace,
                           Outcome* outcomes, int64_t* evicted) {
  return Replay(setup, std::move(policy), trace, outcomes, evicted).run();
}

}  // namespace onnx_moe
