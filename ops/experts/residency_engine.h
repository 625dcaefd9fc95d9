// Keeps the experts of a session within a budget of memory: the experts that calls use are read from the model's files
// into slots, and leave them again as the cache policy says.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/expert_source.h"
#include "experts/reader_pool.h"
#include "experts/record_layout.h"
#include "experts/residency_plan.h"
#include "experts/residency_statistics.h"
#include "experts/slot_arena.h"
#include "experts/visit.h"

namespace onnx_moe {

class ResidencyEngine {
 public:
  // Told once what the options came to; does not call the engine.
  using Decided = std::function<void(const ResidencyPlan&)>;

  explicit ResidencyEngine(const ResidencyOptions& options, Decided decided = nullptr)
      : options_(options), decided_(std::move(decided)) {}
  ResidencyEngine(const ResidencyEngine&) = delete;
  ResidencyEngine& operator=(const ResidencyEngine&) = delete;

  // All of them before the first call. Returns the layer's number.
  int64_t add_layer(ExpertLayer layer);

  // The experts of a call of a layer: null in the modes mapped and pagecache. The first call decides the mode.
  std::unique_ptr<ExpertSource> open(int64_t layer, const int32_t* expert_ids, int64_t count);

  // What the options came to. The first question, or call, decides.
  ResidencyMode mode();

  // Another budget, while calls run or not. Throws an Error below what a token needs, or unless the mode is pool.
  void set_budget(const std::string& budget);

  ResidencyStatistics statistics() const;

 private:
  friend class PooledCall;

  enum class State : uint8_t { kAbsent, kLoading, kResident, kFailed };
  // A place for an expert: of a key of the bank, or one of the staging area, which follow them.
  struct Place {
    State state = State::kAbsent;
    uint8_t* slot = nullptr;
    std::string error;
  };

  using Lock = std::unique_lock<std::mutex>;

  void start();
  void find_files(ExpertLayer& layer);
  void start_pool(const ResidencyPlan& plan);
  void advise(int64_t layer, const int32_t* expert_ids, int64_t count) const;
  std::unique_ptr<CachePolicy> make_policy() const;

  // All of these with the lock.
  Place& place(int64_t index) { return places_[static_cast<size_t>(index)]; }
  void load(int64_t place_index, int64_t key);
  // Makes room for a missing expert, loads it there and leases it for its load. False when all residents are leased.
  bool admit(int64_t key);
  void empty(int64_t place_index);
  void release(int64_t key);
  // A free place of the staging area, if there is one.
  std::optional<int64_t> free_staging() const;
  std::string describe(int64_t key, const std::string& error) const;

  void finished(int64_t place_index, const std::string& error);

  ResidencyOptions options_;
  Decided decided_;
  ExpertLayers experts_;
  std::optional<FileMappings> mappings_;  // while layers are added: ONNX Runtime has mapped all before the first one
  std::once_flag started_;
  ResidencyPlan plan_;
  int64_t process_ = 0;
  ExpertBank bank_{0, 0};
  int64_t slot_bytes_ = 0;
  RecordLayout::Files files_;
  std::vector<RecordLayout> layouts_;  // by layer

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a load has ended, or a lease
  SlotCounts counts_{};
  std::unique_ptr<ResidentSet> residents_;
  std::unique_ptr<VisitPlanner> planner_;
  std::vector<Place> places_;
  std::unique_ptr<SlotArena> slots_;
  ResidencyStatistics statistics_;
  std::unique_ptr<ReaderPool> readers_;  // last, so that its threads end first: they use all of the above
};

}  // namespace onnx_moe
