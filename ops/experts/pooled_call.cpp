#include "experts/pooled_call.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"

namespace onnx_moe {

namespace {

class Stopwatch {
 public:
  explicit Stopwatch(int64_t& total_ns) : total_ns_(total_ns), start_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() {
    total_ns_ +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_).count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  int64_t& total_ns_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

// make_unique would clear the data, which takes as long as looking up the experts of a token.
PooledCall::PooledCall(ResidencyEngine& engine, int64_t layer)
    : engine_(engine),
      layer_(layer),
      projections_(engine.experts_.layers[static_cast<size_t>(layer)].projections.size()),
      num_experts_(static_cast<size_t>(engine.bank_.experts)),
      data_(new ExpertData[projections_ * num_experts_]) {}

// Once the other constructor is through, the destructor gives back what this one has when it throws.
PooledCall::PooledCall(ResidencyEngine& engine, int64_t layer, const int32_t* expert_ids, int64_t count)
    : PooledCall(engine, layer) {
  const Stopwatch watch(busy_ns_);
  const int64_t most = std::min(count, static_cast<int64_t>(num_experts_));
  prefetch(expert_ids, most);
  reserve(static_cast<size_t>(most));
  const ResidencyEngine::Lock lock(engine_.mutex_);
  engine_.planner_->look_up(*engine_.residents_, layer, expert_ids, count, visit_);
  note_keys();
  count_visit();
  for (const VisitedExpert& expert : visit_.hits) {
    leased_.push_back(expert.key);
    awaited_.push_back(expert.key);
    // Of a warm start, perhaps, behind everything that is asked for.
    if (engine_.place(expert.key).state == State::kLoading) engine_.readers_->promote(expert.key);
  }
  if (engine_.speculation_) take_over();
  admit();
  stage();
  if (engine_.speculation_ && visit_.bypassing.empty()) engine_.read_ahead(layer, keys_);
}

PooledCall::~PooledCall() {
  ResidencyEngine::Lock lock(engine_.mutex_);
  // A call that ends early: reads cannot be called back, and those that fail are to be over before the next call.
  const auto loading = [&](int64_t place) { return engine_.place(place).state == State::kLoading; };
  engine_.changed_.wait(lock, [&] {
    return std::none_of(awaited_.begin(), awaited_.end(), loading) &&
           std::none_of(loading_.begin(), loading_.end(), [&](const Staged& staged) { return loading(staged.place); });
  });
  {
    const Stopwatch watch(busy_ns_);
    release_all();
    free_computed();
    for (const Staged& staged : loading_) engine_.empty(staged.place);
    for (const Speculation::Entry& entry : ahead_) engine_.drop(entry);
    engine_.changed_.notify_all();
  }
  engine_.statistics_.bookkeeping_ns += busy_ns_;
}

void PooledCall::prefetch(const int32_t* expert_ids, int64_t count) const {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t key = engine_.bank_.key(layer_, expert_ids[i]);
    engine_.counters_->prefetch(key);
    __builtin_prefetch(&engine_.place(key), 0);
    for (size_t projection = 0; projection < projections_; ++projection) {
      __builtin_prefetch(&data_[projection * num_experts_ + static_cast<size_t>(expert_ids[i])], 1);
    }
  }
}

void PooledCall::reserve(size_t experts) {
  visit_.hits.reserve(experts);
  keys_.reserve(experts);
  leased_.reserve(experts);
  awaited_.reserve(experts);
  set_.reserve(experts);
}

void PooledCall::note_keys() {
  std::vector<VisitedExpert> experts;
  experts.reserve(visit_.hits.size() + visit_.missing.size() + visit_.bypassing.size());
  experts = visit_.hits;
  experts.insert(experts.end(), visit_.missing.begin(), visit_.missing.end());
  experts.insert(experts.end(), visit_.bypassing.begin(), visit_.bypassing.end());
  std::sort(experts.begin(), experts.end(),
            [](const VisitedExpert& a, const VisitedExpert& b) { return a.position < b.position; });
  engine_.counters_->visit(layer_);
  for (const VisitedExpert& expert : experts) {
    keys_.push_back(expert.key);
    engine_.counters_->use(expert.key);
  }
}

void PooledCall::count_visit() {
  ResidencyStatistics& statistics = engine_.statistics_;
  const auto hits = static_cast<int64_t>(visit_.hits.size());
  const auto bypassed = static_cast<int64_t>(visit_.bypassing.size());
  const int64_t misses = static_cast<int64_t>(visit_.missing.size()) + bypassed;
  ++statistics.calls;
  statistics.hits += hits;
  statistics.misses += misses;
  statistics.bypassed += bypassed;
  statistics.layers[static_cast<size_t>(layer_)].hits += hits;
  statistics.layers[static_cast<size_t>(layer_)].misses += misses;
}

void PooledCall::take_over() {
  const auto missing = [&](const Speculation::Entry& entry) {
    return std::any_of(visit_.missing.begin(), visit_.missing.end(),
                       [&](const VisitedExpert& expert) { return expert.key == entry.key; });
  };
  for (const Speculation::Entry& entry : engine_.speculation_->judge(layer_, keys_)) {
    if (missing(entry)) {
      ahead_.push_back(entry);
    } else {
      engine_.drop(entry);
    }
  }
}

void PooledCall::admit() {
  for (; next_missing_ < visit_.missing.size(); ++next_missing_) {
    const int64_t key = visit_.missing[next_missing_].key;
    if (engine_.residents_->contains(key)) {  // another call was faster
      ++engine_.statistics_.joined;
    } else if (!admit(key)) {
      return;
    }
    engine_.residents_->lease(key);
    leased_.push_back(key);
    awaited_.push_back(key);
  }
}

bool PooledCall::admit(int64_t key) {
  const auto ahead =
      std::find_if(ahead_.begin(), ahead_.end(), [&](const Speculation::Entry& entry) { return entry.key == key; });
  if (ahead == ahead_.end()) return engine_.admit(key, nullptr);
  if (!engine_.admit(key, &*ahead)) return false;
  ahead_.erase(ahead);
  return true;
}

void PooledCall::stage() {
  for (; next_bypassing_ < visit_.bypassing.size(); ++next_bypassing_) {
    const std::optional<int64_t> place = engine_.free_staging();
    if (!place) return;
    const int64_t key = visit_.bypassing[next_bypassing_].key;
    engine_.load(*place, key, Urgency::kDemand);
    loading_.push_back({*place, key});
  }
}

ExpertSet PooledCall::next() {
  const Stopwatch watch(busy_ns_);
  ResidencyEngine::Lock lock(engine_.mutex_);
  set_.clear();
  free_computed();
  stage();
  for (take_ready(); set_.empty() && !done(); take_ready()) {
    if (awaited_.empty() && next_missing_ < visit_.missing.size()) {
      // The slots that this call holds have been computed with: the next wave.
      if (!leased_.empty()) ++engine_.statistics_.waves;
      release_all();
      admit();
      if (!awaited_.empty()) continue;
    }
    wait(lock);
    stage();
  }
  if (set_.empty()) release_all();
  return {set_.data(), static_cast<int64_t>(set_.size())};
}

bool PooledCall::done() const {
  return awaited_.empty() && loading_.empty() && next_missing_ == visit_.missing.size() &&
         next_bypassing_ == visit_.bypassing.size();
}

void PooledCall::take_ready() {
  const auto ready = [&](int64_t place, int64_t key) {
    const ResidencyEngine::Place& expert = engine_.place(place);
    require(expert.state != State::kFailed, engine_.describe(key, expert.error));
    return expert.state == State::kResident;
  };
  const auto take = [&](int64_t key) {
    if (!ready(key, key)) return false;
    hand_out(key, key);
    return true;
  };
  const auto take_staged = [&](const Staged& staged) {
    if (!ready(staged.place, staged.key)) return false;
    hand_out(staged.place, staged.key);
    computed_.push_back(staged);
    return true;
  };
  awaited_.erase(std::remove_if(awaited_.begin(), awaited_.end(), take), awaited_.end());
  loading_.erase(std::remove_if(loading_.begin(), loading_.end(), take_staged), loading_.end());
}

void PooledCall::hand_out(int64_t place, int64_t key) {
  const int64_t expert = engine_.bank_.expert_of(key);
  const RecordLayout& layout = engine_.layouts_[static_cast<size_t>(layer_)];
  const uint8_t* const slot = engine_.place(place).slot;
  for (size_t projection = 0; projection < projections_; ++projection) {
    data_[projection * num_experts_ + static_cast<size_t>(expert)] = layout.in_slot(projection, expert, slot);
  }
  set_.push_back(static_cast<int32_t>(expert));
}

void PooledCall::release_all() {
  if (leased_.empty()) return;
  for (const int64_t key : leased_) engine_.release(key);
  leased_.clear();
  awaited_.clear();
  engine_.changed_.notify_all();
}

void PooledCall::free_computed() {
  if (computed_.empty()) return;
  for (const Staged& staged : computed_) engine_.empty(staged.place);
  computed_.clear();
  engine_.changed_.notify_all();
}

void PooledCall::wait(ResidencyEngine::Lock& lock) {
  int64_t stalled = 0;
  {
    const Stopwatch watch(stalled);
    engine_.changed_.wait(lock);
  }
  engine_.statistics_.stall_ns += stalled;
  busy_ns_ -= stalled;
}

}  // namespace onnx_moe
