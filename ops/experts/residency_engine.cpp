#include "experts/residency_engine.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "experts/machine_memory.h"
#include "experts/pooled_call.h"

namespace onnx_moe {

// In a process that was forked from the session's, the threads are not there to be waited for, and what they held is
// left to the process's end.
ResidencyEngine::~ResidencyEngine() {
  if (forked()) {
    static_cast<void>(readers_.release());
    static_cast<void>(populator_.release());
    return;
  }
  if (residents_ && !options_.save_counters.empty()) {
    try {
      save_counters(options_.save_counters);
    } catch (const std::exception&) {  // the session is gone: nobody is left to tell
    }
  }
}

bool ResidencyEngine::forked() const { return process_ != 0 && process_ != ::getpid(); }

std::unique_ptr<ExpertSource> ResidencyEngine::open(int64_t layer, const int32_t* expert_ids, int64_t count) {
  if (mode() == ResidencyMode::kMapped) return nullptr;
  require(!forked(), "the session was created in process ", process_, ", and its threads that read experts do not ",
          "live on in process ", ::getpid(), ", which was forked from it: create a session here");
  if (plan_.mode == ResidencyMode::kPageCache) {
    advise(layer, expert_ids, count);
    return nullptr;
  }
  return std::make_unique<PooledCall>(*this, layer, expert_ids, count);
}

void ResidencyEngine::advise(int64_t layer, const int32_t* expert_ids, int64_t count) {
  const ExpertLayer& experts = experts_.layers[static_cast<size_t>(layer)];
  std::vector<bool> advised(static_cast<size_t>(experts.num_experts));
  for (int64_t i = 0; i < count; ++i) {
    if (advised[static_cast<size_t>(expert_ids[i])]) continue;
    advised[static_cast<size_t>(expert_ids[i])] = true;
    experts.for_each_tensor([&](const ExpertTensor& tensor) {
      populator_->will_need(tensor.memory + expert_ids[i] * tensor.expert_bytes, tensor.expert_bytes);
    });
  }
}

int64_t ResidencyEngine::expert_bytes(int64_t key) const {
  return experts_.layers[static_cast<size_t>(bank_.layer_of(key))].expert_bytes();
}

void ResidencyEngine::load(int64_t place_index, int64_t key, Urgency urgency) {
  Place& target = place(place_index);
  if (!target.slot) target.slot = slots_->take();
  const RecordLayout& layout = layouts_[static_cast<size_t>(bank_.layer_of(key))];
  statistics_.bytes_read += expert_bytes(key);
  readers_->submit(place_index, layout.pieces(bank_.expert_of(key), target.slot), urgency);
  target.state = State::kLoading;  // no reader ends the load before this lock does
  target.error.clear();
}

bool ResidencyEngine::admit(int64_t key, const Speculation::Entry* read_ahead) {
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
    make_resident(key, read_ahead);
  } catch (const Error& error) {  // no memory for a slot
    residents_->release(key);
    residents_->erase(key);
    empty(key);
    fail(describe(key, error.what()));
  }
  return true;
}

void ResidencyEngine::make_resident(int64_t key, const Speculation::Entry* read_ahead) {
  if (read_ahead && place(read_ahead->place).state != State::kFailed) return adopt(*read_ahead);
  if (read_ahead) drop(*read_ahead);
  load(key, key, Urgency::kDemand);
}

void ResidencyEngine::empty(int64_t place_index) {
  Place& emptied = place(place_index);
  const int64_t with_pages = residents_->count() + slots_->kept();
  const int64_t most = counts_.capacity + counts_.staging + counts_.speculative;
  if (emptied.slot) slots_->give_back(emptied.slot, with_pages < most);
  emptied = Place{};
}

void ResidencyEngine::release(int64_t key) {
  residents_->release(key);
  if (residents_->leased(key)) return;
  const bool over_budget = residents_->count() > counts_.capacity;  // it was lowered meanwhile
  if (place(key).state == State::kFailed || over_budget) {
    residents_->erase(key);
    empty(key);
  }
}

std::optional<int64_t> ResidencyEngine::free_place(int64_t first, int64_t count) const {
  for (int64_t index = first; index < first + count; ++index) {
    if (places_[static_cast<size_t>(index)].state == State::kAbsent) return index;
  }
  return std::nullopt;
}

std::optional<int64_t> ResidencyEngine::free_staging() const {
  // A call that planned with another budget may need a place where this one has none.
  return free_place(bank_.size(), std::max<int64_t>(counts_.staging, 1));
}

void ResidencyEngine::finished(int64_t place_index, const std::string& error) {
  Lock lock(mutex_);
  if (!error.empty()) ++statistics_.failed_loads;
  int64_t index = place_index;
  if (place(index).moves_to != kStays) {
    index = place(index).moves_to;
    place(place_index) = Place{};  // the slot is the other's
  }
  Place& done = place(index);
  done.state = error.empty() ? State::kResident : State::kFailed;
  done.error = error;
  if (done.unwanted) {
    empty(index);
  } else if (index < bank_.size()) {
    release(index);
  }
  lock.unlock();  // or who is woken would wait for it
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
  const SlotCounts counts = divide_budget(bytes, slot_bytes_, experts_, speculation_ != nullptr);
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

void ResidencyEngine::save_counters(const std::string& path) {
  const ResidencyMode current = mode();
  require(current == ResidencyMode::kPool, "the session counts no uses in its mode, ", name_of(current),
          ": counters can be saved in the mode pool");
  std::vector<double> values;
  {
    const Lock lock(mutex_);
    for (int64_t key = 0; key < bank_.size(); ++key) values.push_back(counters_->value(key));
  }
  write_counters(path, values, bank_);
}

ResidencyStatistics ResidencyEngine::statistics() const {
  const Lock lock(mutex_);
  ResidencyStatistics statistics = statistics_;
  const bool decided = !statistics.layers.empty();
  statistics.mode = name_of(decided ? plan_.mode : options_.mode);
  statistics.reason = decided ? plan_.reason : "the first run decides";
  statistics.unused = plan_.unused;
  statistics.expert_bytes = experts_.bytes();
  if (!residents_) return statistics;
  statistics.policy = name_of(options_.policy);
  statistics.direct_io = std::all_of(files_.begin(), files_.end(), [](const auto& file) { return file->direct(); });
  statistics.budget_bytes = plan_.budget_bytes;
  statistics.cycle_bytes = cycle_bytes(slot_bytes_, experts_, speculation_ != nullptr);
  statistics.slot_bytes = slot_bytes_;
  statistics.capacity = counts_.capacity;
  statistics.staging = counts_.staging;
  statistics.layer_floor = counts_.layer_floor;
  statistics.share = counts_.share;
  statistics.resident = residents_->count();
  if (speculation_) {
    statistics.prefetch_signal = name_of(options_.prefetch);
    statistics.prefetch_precision = options_.prefetch_precision;
    statistics.speculative_slots = counts_.speculative;
  }
  for (int64_t layer = 0; layer < bank_.layers; ++layer) {
    LayerResidency& of_layer = statistics.layers[static_cast<size_t>(layer)];
    of_layer.resident = residents_->count(layer);
    if (!speculation_) continue;
    of_layer.prefetching = speculation_->on(layer);
    of_layer.prefetch = speculation_->counts(layer);
  }
  return statistics;
}

}  // namespace onnx_moe
