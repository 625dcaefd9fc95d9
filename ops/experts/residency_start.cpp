// What the residency engine does before the first call: it finds the experts' files, decides the mode, divides the
// budget, and starts warm.
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "experts/residency_engine.h"

namespace onnx_moe {

namespace {

constexpr double kDecay = 0.95;  // halves a use in about 14 tokens

}  // namespace

int64_t ResidencyEngine::add_router(const RouterChoice& choice, bool knows_next_gate) {
  const Lock lock(mutex_);
  any_next_gate_ |= knows_next_gate;
  const auto first_layer = static_cast<int64_t>(experts_.layers.size());
  routers_[first_layer] = choice;
  return first_layer;
}

int64_t ResidencyEngine::add_layer(ExpertLayer layer) {
  const Lock lock(mutex_);
  if (options_.mode != ResidencyMode::kMapped) find_files(layer);
  experts_.layers.push_back(std::move(layer));
  return static_cast<int64_t>(experts_.layers.size()) - 1;
}

ResidencyMode ResidencyEngine::mode() {
  std::call_once(started_, [this] { start(); });
  return plan_.mode;
}

void ResidencyEngine::start() {
  const Lock lock(mutex_);
  mappings_.reset();
  for (const ExpertLayer& layer : experts_.layers) {
    slot_bytes_ = std::max(slot_bytes_, RecordLayout::slot_bytes(layer));
    bank_.experts = std::max(bank_.experts, layer.num_experts);
  }
  bank_.layers = static_cast<int64_t>(experts_.layers.size());
  const ResidencyPlan plan = make_plan(options_, experts_, slot_bytes_);
  if (plan.mode == ResidencyMode::kPool) start_pool(plan);
  if (plan.mode == ResidencyMode::kPageCache) populator_ = std::make_unique<PagePopulator>();
  plan_ = plan;
  process_ = ::getpid();
  for (const ExpertLayer& layer : experts_.layers)
    statistics_.layers.push_back({layer.node, layer.expert_bytes(), 0, 0, 0, false, {}});
  if (decided_) decided_(plan_);
}

void ResidencyEngine::find_files(ExpertLayer& layer) {
  if (!mappings_) mappings_.emplace();
  layer.for_each_tensor([&](ExpertTensor& tensor) {
    const std::optional<FileLocation> file = mappings_->locate(tensor.memory, layer.num_experts * tensor.expert_bytes);
    if (file) {
      tensor.file = *file;
    } else if (experts_.unmapped.empty()) {
      experts_.unmapped = "input " + tensor.name + " of node '" + layer.node + "'";
    }
  });
}

// Leaves the engine as it was when it throws: the next call tries again.
void ResidencyEngine::start_pool(const ResidencyPlan& plan) {
  const bool prefetches = options_.prefetch != PrefetchSignalKind::kNone;
  require(options_.prefetch != PrefetchSignalKind::kNextGate || any_next_gate_,
          "session entry onnx_moe.prefetch is 'next-gate', but no router of the model has the input next_gate_weight: ",
          "export it with next_gates, or use cross-layer");
  counts_ = divide_budget(plan.budget_bytes, slot_bytes_, experts_, prefetches);
  std::vector<double> values;
  if (!options_.counters.empty()) values = read_counters(options_.counters, bank_);
  if (!options_.save_counters.empty()) check_writable(options_.save_counters);
  const std::vector<int64_t> hottest = most_used(values);
  RecordLayout::Files files;
  std::vector<RecordLayout> layouts;
  for (const ExpertLayer& layer : experts_.layers) layouts.emplace_back(layer, plan.direct_io, files);
  files_ = std::move(files);
  layouts_ = std::move(layouts);
  residents_ = std::make_unique<ResidentSet>(bank_, counts_.capacity, counts_.layer_floor, make_policy(hottest));
  planner_ = std::make_unique<VisitPlanner>(bank_, counts_.share);
  counters_ = std::make_unique<UseCounters>(bank_, kDecay);
  if (prefetches) start_prefetching();
  places_.assign(static_cast<size_t>(bank_.size() + kMostStaging + kMostSpeculative), Place{});
  slots_ = std::make_unique<SlotArena>(slot_bytes_, options_.poison);
  readers_ = std::make_unique<ReaderPool>(
      options_.threads, [this](int64_t place_index, const std::string& error) { finished(place_index, error); });
  start_warm(values, hottest);
}

void ResidencyEngine::start_prefetching() {
  next_gate_choice_.resize(static_cast<size_t>(bank_.layers));
  speculation_ =
      std::make_unique<Speculation>(make_prefetch_signal(options_.prefetch, bank_), bank_, options_.prefetch_precision);
}

std::unique_ptr<CachePolicy> ResidencyEngine::make_policy(const std::vector<int64_t>& hottest) {
  std::unique_ptr<CachePolicy> policy;
  if (options_.policy == EvictionPolicy::kLru) {
    policy = std::make_unique<LruPolicy>();
  } else {
    policy = std::make_unique<DecayedLfuPolicy>(bank_, kDecay);
  }
  const int64_t pinned = std::min(options_.pinned.resolve(counts_.capacity), static_cast<int64_t>(hottest.size()));
  statistics_.pinned = pinned;
  if (pinned == 0) return policy;
  return std::make_unique<PinnedPolicy>(bank_, std::vector<int64_t>(hottest.begin(), hottest.begin() + pinned),
                                        std::move(policy));
}

// Reads the experts that were used most, behind everything that calls ask for.
void ResidencyEngine::start_warm(const std::vector<double>& values, const std::vector<int64_t>& hottest) {
  const auto end = hottest.begin() + std::min(counts_.capacity, static_cast<int64_t>(hottest.size()));
  // All memory before the first read, so that nothing is under way when there is too little.
  std::for_each(hottest.begin(), end, [&](int64_t key) { place(key).slot = slots_->take(); });
  // The most used last: it is the most recently used then.
  std::for_each(hottest.rbegin(), hottest.rend(), [&](int64_t key) {
    residents_->start_with(key, values[static_cast<size_t>(key)]);
    counters_->set(key, values[static_cast<size_t>(key)]);
  });
  std::for_each(hottest.begin(), end, [&](int64_t key) {
    residents_->insert(key);
    residents_->lease(key);
    load(key, key, Urgency::kSpeculation);
    statistics_.warm_start_bytes += expert_bytes(key);
  });
}

}  // namespace onnx_moe
