// Keeps the experts of a session within a budget of memory: the experts that calls use are read from the model's files
// into slots, and leave them again as the cache policy says.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/expert_source.h"
#include "core/router.h"
#include "experts/page_populator.h"
#include "experts/reader_pool.h"
#include "experts/record_layout.h"
#include "experts/residency_plan.h"
#include "experts/residency_statistics.h"
#include "experts/slot_arena.h"
#include "experts/speculation.h"
#include "experts/use_counters.h"
#include "experts/visit.h"

namespace onnx_moe {

class ResidencyEngine {
 public:
  // Told once what the options came to; does not call the engine.
  using Decided = std::function<void(const ResidencyPlan&)>;

  explicit ResidencyEngine(const ResidencyOptions& options, Decided decided = nullptr)
      : options_(options), decided_(std::move(decided)) {}
  ~ResidencyEngine();
  ResidencyEngine(const ResidencyEngine&) = delete;
  ResidencyEngine& operator=(const ResidencyEngine&) = delete;

  // A router whose experts are the layers that are added next. Returns the first one's number.
  int64_t add_router(const RouterChoice& choice, bool knows_next_gate);
  // All of them before the first call. Returns the layer's number.
  int64_t add_layer(ExpertLayer layer);

  // The experts of a call of a layer: null in the modes mapped and pagecache. The first call decides the mode.
  std::unique_ptr<ExpertSource> open(int64_t layer, const int32_t* expert_ids, int64_t count);

  // Whether anybody asks what the next router's gate says of this one's hidden states.
  bool asks_next_gate();
  // What the router after this one, whose first layer this is, chooses by; null behind the last one.
  const RouterChoice* next_choice(int64_t first_layer) const;
  // The answer of the router whose first layer this is: experts of the next router's layers, the likeliest first.
  void next_gate_chose(int64_t first_layer, const int32_t* experts, int64_t count);

  // What the options came to. The first question, or call, decides.
  ResidencyMode mode();

  // Another budget, while calls run or not. Throws an Error below what a token needs, or unless the mode is pool.
  void set_budget(const std::string& budget);

  ResidencyStatistics statistics() const;

  // How much each expert has been used, as a file that another session starts warm from (ResidencyOptions::counters).
  // Throws an Error unless the mode is pool, or when the file cannot be written.
  void save_counters(const std::string& path);

 private:
  friend class PooledCall;

  enum class State : uint8_t { kAbsent, kLoading, kResident, kFailed };
  static constexpr int64_t kStays = -1;
  // A place for an expert: of a key of the bank, or one of the side areas that follow them: staging, speculation.
  struct Place {
    State state = State::kAbsent;
    uint8_t* slot = nullptr;
    std::string error;
    // Of a speculative load under way:
    int64_t moves_to = kStays;  // the key that a call has asked for meanwhile
    bool unwanted = false;      // emptied when it ends
  };

  using Lock = std::unique_lock<std::mutex>;

  // ---- before the first call
  void start();
  void find_files(ExpertLayer& layer);
  void start_pool(const ResidencyPlan& plan);
  void start_prefetching();
  std::unique_ptr<CachePolicy> make_policy(const std::vector<int64_t>& hottest);
  void start_warm(const std::vector<double>& values, const std::vector<int64_t>& hottest);

  void advise(int64_t layer, const int32_t* expert_ids, int64_t count);
  bool forked() const;

  // All of these with the lock.
  Place& place(int64_t index) { return places_[static_cast<size_t>(index)]; }
  int64_t expert_bytes(int64_t key) const;
  void load(int64_t place_index, int64_t key, Urgency urgency);
  // Makes room for a missing expert, brings it there and leases it for its load. False when all residents are leased.
  bool admit(int64_t key, const Speculation::Entry* read_ahead);
  void make_resident(int64_t key, const Speculation::Entry* read_ahead);
  void empty(int64_t place_index);
  // Ends a lease; whoever waits for one is to be notified.
  void release(int64_t key);
  // A free place of a side area, if there is one.
  std::optional<int64_t> free_place(int64_t first, int64_t count) const;
  std::optional<int64_t> free_staging() const;
  std::string describe(int64_t key, const std::string& error) const;

  // ---- reading ahead; with the lock
  // The expert that was read ahead is what a call misses: its slot moves into the cache.
  void adopt(const Speculation::Entry& entry);
  // Nobody has used it.
  void drop(const Speculation::Entry& entry);
  void read_ahead(int64_t layer, const std::vector<int64_t>& keys);

  void finished(int64_t place_index, const std::string& error);

  ResidencyOptions options_;
  Decided decided_;
  ExpertLayers experts_;
  std::map<int64_t, RouterChoice> routers_;  // by their first layers
  bool any_next_gate_ = false;
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
  std::unique_ptr<UseCounters> counters_;
  std::unique_ptr<Speculation> speculation_;            // null without prefetching
  std::vector<std::vector<int32_t>> next_gate_choice_;  // by the layer that it is for
  std::vector<Place> places_;
  std::unique_ptr<SlotArena> slots_;
  ResidencyStatistics statistics_;
  std::unique_ptr<PagePopulator> populator_;  // of the mode pagecache
  std::unique_ptr<ReaderPool> readers_;       // last, so that its threads end first: they use all of the above
};

}  // namespace onnx_moe
