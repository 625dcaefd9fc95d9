#include "experts/residency_engine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "experts/machine_memory.h"
#include "experts/pooled_call.h"

namespace onnx_moe {

namespace {

constexpr double kDecay = 0.95;  // halves a use in about 14 tokens

// Asks the system to read mapped memory ahead; what it answers changes nothing.
void will_need(const ExpertTensor& tensor, int64_t expert) {
  constexpr uintptr_t kPage = ExpertFile::kAlignment;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.memory + expert * tensor.expert_bytes);
  const uintptr_t first_page = begin / kPage * kPage;
  const uintptr_t end = begin + static_cast<uintptr_t>(tensor.expert_bytes);
  ::madvise(reinterpret_cast<void*>(first_page), end - first_page, MADV_WILLNEED);
}

}  // namespace

int64_t ResidencyEngine::add_layer(ExpertLayer layer) {
  const Lock lock(mutex_);
  if (options_.mode != ResidencyMode::kMapped) find_files(layer);
  experts_.layers.push_back(std::move(layer));
  return static_cast<int64_t>(experts_.layers.size()) - 1;
}

std::unique_ptr<ExpertSource> ResidencyEngine::open(int64_t layer, const int32_t* expert_ids, int64_t count) {
  if (mode() == ResidencyMode::kMapped) return nullptr;
  if (plan_.mode == ResidencyMode::kPageCache) {
    advise(layer, expert_ids, count);
    return nullptr;
  }
  require(::getpid() == process_, "the session was created in process ", process_, ", and its expert cache does not ",
          "live on in process ", ::getpid(), ", which was forked from it: create a session here");
  return std::make_unique<PooledCall>(*this, layer, expert_ids, count);
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
  plan_ = plan;
  process_ = ::getpid();
  for (const ExpertLayer& layer : experts_.layers) statistics_.layers.push_back({layer.node});
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

void ResidencyEngine::start_pool(const ResidencyPlan& plan) {
  counts_ = divide_budget(plan.budget_bytes, slot_bytes_, experts_);
  RecordLayout::Files files;
  std::vector<RecordLayout> layouts;
  for (const ExpertLayer& layer : experts_.layers) layouts.emplace_back(layer, plan.direct_io, files);
  files_ = std::move(files);
  layouts_ = std::move(layouts);
  residents_ = std::make_unique<ResidentSet>(bank_, counts_.capacity, counts_.layer_floor, make_policy());
  planner_ = std::make_unique<VisitPlanner>(bank_, counts_.share);
  places_.resize(static_cast<size_t>(bank_.size() + kMostStaging));
  slots_ = std::make_unique<SlotArena>(slot_bytes_);
  readers_ = std::make_unique<ReaderPool>(
      options_.threads, [this](int64_t place_index, const std::string& error) { finished(place_index, error); });
}

std::unique_ptr<CachePolicy> ResidencyEngine::make_policy() const {
  if (options_.policy == EvictionPolicy::kLru) return std::make_unique<LruPolicy>();
  return std::make_unique<DecayedLfuPolicy>(bank_, kDecay);
}

void ResidencyEngine::advise(int64_t layer, const int32_t* expert_ids, int64_t count) const {
  const ExpertLayer& experts = experts_.layers[static_cast<size_t>(layer)];
  std::vector<bool> advised(static_cast<size_t>(experts.num_experts));
  for (int64_t i = 0; i < count; ++i) {
    if (advised[static_cast<size_t>(expert_ids[i])]) continue;
    advised[static_cast<size_t>(expert_ids[i])] = true;
    experts.for_each_tensor([&](const ExpertTensor& tensor) { will_need(tensor, expert_ids[i]); });
  }
}

void ResidencyEngine::load(int64_t place_index, int64_t key) {
  Place& target = place(place_index);
  if (!target.slot) target.slot = slots_->take();
  const std::vector<ReadPiece> pieces =
      layouts_[static_cast<size_t>(bank_.layer_of(key))].pieces(bank_.expert_of(key), target.slot);
  statistics_.bytes_read += experts_.layers[static_cast<size_t>(bank_.layer_of(key))].expert_bytes();
  readers_->submit(place_index, pieces);
  target.state = State::kLoading;  // no reader ends the load before this lock does
  target.error.clear();
}

bool ResidencyEngine::admit(int64_t key) {
  while (residents_->full()) {
    const std::optional<int64_t> victim = residents_->victim(bank_.layer_of(key));
    if (!victim) return false;
    residents_->erase(*victim);
    empty(*victim);
    ++statistics_.evictions;
  }
  residents_->insert(key);
  residents_->lease(key);
  try {
    load(key, key);
  } catch (...) {  // no memory for a slot
    residents_->release(key);
    residents_->erase(key);
    empty(key);
    throw;
  }
  return true;
}

void ResidencyEngine::empty(int64_t place_index) {
  Place& emptied = place(place_index);
  emptied.state = State::kAbsent;
  const int64_t with_pages = residents_->count() + slots_->kept();
  if (emptied.slot) slots_->give_back(emptied.slot, with_pages < counts_.capacity + counts_.staging);
  emptied.slot = nullptr;
}

void ResidencyEngine::release(int64_t key) {
  residents_->release(key);
  if (residents_->leased(key)) return;
  const bool over_budget = residents_->count() > counts_.capacity;  // it was lowered meanwhile
  if (place(key).state == State::kFailed || over_budget) {
    residents_->erase(key);
    empty(key);
  }
  changed_.notify_all();
}

std::optional<int64_t> ResidencyEngine::free_staging() const {
  // A call that planned with another budget may need a place where this one has none.
  const int64_t places = std::max<int64_t>(counts_.staging, 1);
  for (int64_t index = bank_.size(); index < bank_.size() + places; ++index) {
    if (places_[static_cast<size_t>(index)].state == State::kAbsent) return index;
  }
  return std::nullopt;
}

void ResidencyEngine::finished(int64_t place_index, const std::string& error) {
  const Lock lock(mutex_);
  Place& done = place(place_index);
  done.state = error.empty() ? State::kResident : State::kFailed;
  done.error = error;
  if (!error.empty()) ++statistics_.failed_loads;
  if (place_index < bank_.size()) release(place_index);
  changed_.notify_all();
}

std::string ResidencyEngine::describe(int64_t key, const std::string& error) const {
  return "expert " + std::to_string(bank_.expert_of(key)) + " of layer " + std::to_string(bank_.layer_of(key)) +
         " could not be loaded: " + error;
}

void ResidencyEngine::set_budget(const std::string& budget) {
  const CacheBudget parsed = CacheBudget::parse(budget);
  const ResidencyMode current = mode();
  require(current == ResidencyMode::kPool, "the session has no expert cache in its mode, ", name_of(current),
          ": a budget can be set in the mode pool");
  const Lock lock(mutex_);
  const int64_t bytes = parsed.resolve(experts_.num_experts() * slot_bytes_, available_memory());
  const SlotCounts counts = divide_budget(bytes, slot_bytes_, experts_);
  plan_.budget_bytes = bytes;
  counts_ = counts;
  residents_->resize(counts.capacity, counts.layer_floor);
  planner_->set_share(counts.share);
  while (residents_->count() > counts.capacity) {
    std::optional<int64_t> victim;
    for (int64_t layer = 0; layer < bank_.layers && !victim; ++layer) victim = residents_->victim(layer);
    if (!victim) break;  // leased: those go when they are released
    residents_->erase(*victim);
    empty(*victim);
    ++statistics_.evictions;
  }
  slots_->drop_kept();
}

ResidencyStatistics ResidencyEngine::statistics() const {
  const Lock lock(mutex_);
  ResidencyStatistics statistics = statistics_;
  const bool decided = !statistics.layers.empty();
  statistics.mode = name_of(decided ? plan_.mode : options_.mode);
  statistics.reason = decided ? plan_.reason : "the first run decides";
  statistics.expert_bytes = experts_.bytes();
  if (!residents_) return statistics;
  statistics.policy = name_of(options_.policy);
  statistics.direct_io = std::all_of(files_.begin(), files_.end(), [](const auto& file) { return file->direct(); });
  statistics.budget_bytes = plan_.budget_bytes;
  statistics.cycle_bytes = cycle_bytes(slot_bytes_, experts_);
  statistics.slot_bytes = slot_bytes_;
  statistics.capacity = counts_.capacity;
  statistics.staging = counts_.staging;
  statistics.layer_floor = counts_.layer_floor;
  statistics.share = counts_.share;
  statistics.resident = residents_->count();
  for (int64_t layer = 0; layer < bank_.layers; ++layer) {
    statistics.layers[static_cast<size_t>(layer)].resident = residents_->count(layer);
  }
  return statistics;
}

}  // namespace onnx_moe
