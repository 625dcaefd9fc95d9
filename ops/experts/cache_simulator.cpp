#include "experts/cache_simulator.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "core/error.h"
#include "experts/visit.h"

namespace onnx_moe {

namespace {

class Replay {
 public:
  Replay(const CacheSetup& setup, std::unique_ptr<CachePolicy> policy, const RoutingTrace& trace, Outcome* outcomes,
         int64_t* evicted)
      : residents_(setup.bank, setup.capacity, setup.layer_floor, std::move(policy)),
        planner_(setup.bank, setup.share),
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
      for (const VisitedExpert& expert : visit_.missing) load(visit, expert);
      release_all();
    }
    return counts_;
  }

 private:
  void look_up(int64_t visit) {
    const int64_t begin = trace_.offsets[visit];
    const int64_t count = trace_.offsets[visit + 1] - begin;
    planner_.look_up(residents_, trace_.layers[visit], trace_.experts + begin, count, visit_);
    if (outcomes_) std::fill_n(outcomes_ + begin, count, Outcome::kRepeated);
    if (evicted_) std::fill_n(evicted_ + begin, count, -1);
    for (const VisitedExpert& expert : visit_.hits) leased_.push_back(expert.key);
    counts_.hits += note(visit_.hits, begin, Outcome::kHit);
    counts_.misses += note(visit_.missing, begin, Outcome::kMiss);
    const int64_t bypassed = note(visit_.bypassing, begin, Outcome::kMiss);
    counts_.misses += bypassed;
    counts_.bypassed += bypassed;
  }

  int64_t note(const std::vector<VisitedExpert>& experts, int64_t begin, Outcome outcome) {
    for (const VisitedExpert& expert : experts) {
      if (outcomes_) outcomes_[begin + expert.position] = outcome;
    }
    return static_cast<int64_t>(experts.size());
  }

  void load(int64_t visit, const VisitedExpert& expert) {
    if (residents_.full()) {
      const int64_t layer = trace_.layers[visit];
      std::optional<int64_t> victim = residents_.victim(layer);
      if (!victim) {  // a wave ends here
        release_all();
        victim = residents_.victim(layer);
      }
      residents_.erase(*victim);
      ++counts_.evictions;
      if (evicted_) evicted_[trace_.offsets[visit] + expert.position] = *victim;
    }
    residents_.insert(expert.key);
    residents_.lease(expert.key);
    leased_.push_back(expert.key);
  }

  void release_all() {
    for (const int64_t key : leased_) residents_.release(key);
    leased_.clear();
  }

  ResidentSet residents_;
  VisitPlanner planner_;
  RoutingTrace trace_;
  Outcome* outcomes_;
  int64_t* evicted_;
  CacheCounts counts_;
  Visit visit_;
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
  std::vector<int64_t> last_visit(static_cast<size_t>(bank.size()), -1);
  for (int64_t visit = 0; visit < trace.visits; ++visit) {
    for (int64_t i = trace.offsets[visit]; i < trace.offsets[visit + 1]; ++i) {
      const int64_t key = bank.key(trace.layers[visit], trace.experts[i]);
      int64_t& last = last_visit[static_cast<size_t>(key)];
      if (last != visit) uses.push_back(key);
      last = visit;
    }
  }
  return uses;
}

CacheCounts simulate_cache(const CacheSetup& setup, std::unique_ptr<CachePolicy> policy, const RoutingTrace& trace,
                           Outcome* outcomes, int64_t* evicted) {
  return Replay(setup, std::move(policy), trace, outcomes, evicted).run();
}

}  // namespace onnx_moe
