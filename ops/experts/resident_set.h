// Which experts hold a slot, and which of them gives it up. Bookkeeping alone: no bytes, no threads, no clock, so that
// the engine that loads experts and the simulator that replays traces decide alike.
//
// A call of a layer: begin_visit(layer); for each distinct expert, in the order of its first token: use() and, where
// it holds a slot, lease(); then for each expert without one: make room (full(), victim(), erase()), insert(), lease().
// When victim() finds nobody, everything is leased: compute what is there, release() it, go on (a wave).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "experts/bank.h"
#include "experts/cache_policy.h"
#include "experts/tournament.h"

namespace onnx_moe {

class ResidentSet {
 public:
  // capacity: slots; layer_floor: slots that a layer keeps against the others' needs, layers · layer_floor at the most
  // capacity. Throws an Error otherwise.
  ResidentSet(const ExpertBank& bank, int64_t capacity, int64_t layer_floor, std::unique_ptr<CachePolicy> policy);

  // Before the first visit, of keys without a slot, the least used first: as if `key` had been used so much.
  void start_with(int64_t key, double uses);

  void begin_visit(int64_t layer);
  void use(int64_t key);
  // Asks the processor for what use() and lease() will read.
  void prefetch(int64_t key) const;

  bool contains(int64_t key) const { return at(key).resident; }
  bool full() const { return count_ >= capacity_; }
  bool leased(int64_t key) const { return at(key).leases > 0; }
  int64_t count() const { return count_; }
  // Another capacity and floor from now on, checked as the constructor's. Residents beyond it stay until they are
  // erased.
  void resize(int64_t capacity, int64_t layer_floor);
  int64_t count(int64_t layer) const { return layer_counts_[static_cast<size_t>(layer)]; }

  // A leased expert is nobody's victim. Leases count; only residents have any.
  void lease(int64_t key);
  void release(int64_t key);

  // The policy has changed how `key` compares, other than in begin_visit() and use().
  void reorder(int64_t key);
  // Room for `experts` keys in a bank of one layer; those that it has keep their numbers.
  void widen(int64_t experts);

  void insert(int64_t key);  // there must be room
  void erase(int64_t key);   // it must not be leased

  // Who gives up a slot for an expert of `layer`: the policy's first of that layer and of those above their floor; of
  // all, where leases leave nobody there. Nothing when everyone is leased. O(log keys) for each key that was used,
  // leased or released since the last question, and O(layers) where leases leave nobody.
  std::optional<int64_t> victim(int64_t layer);

 private:
  struct Entry {
    int64_t last_use = 0;
    int32_t leases = 0;
    bool resident = false;
    bool moved = false;  // in moved_
  };

  Entry& at(int64_t key) { return entries_[static_cast<size_t>(key)]; }
  const Entry& at(int64_t key) const { return entries_[static_cast<size_t>(key)]; }
  bool goes_before(int64_t a, int64_t b) const;
  // The first to go of a layer; Tournament::kNobody when there is none.
  int64_t first_of(int64_t layer) const;
  int64_t earlier(int64_t a, int64_t b) const;
  void move(int64_t key);
  void move_layer(int64_t layer);
  void settle();
  void place(int64_t key);
  void place_layer(int64_t layer);

  ExpertBank bank_;
  int64_t capacity_;
  int64_t layer_floor_;
  std::unique_ptr<CachePolicy> policy_;
  int64_t uses_ = 0;
  int64_t count_ = 0;
  std::vector<int64_t> layer_counts_;
  std::vector<Entry> entries_;           // by key
  std::vector<Tournament> of_layers_;    // experts that may go, by layer
  Tournament layers_above_their_floor_;  // by the first to go of each
  // What may stand at a wrong place in the tournaments until somebody asks for a victim. Where all experts fit, nobody
  // asks; the trees' nodes, cold after a layer's weights, were 3 of 8 us a call of eight experts.
  std::vector<int64_t> moved_;
  std::vector<int64_t> moved_layers_;
  std::vector<bool> layer_moved_;
};

}  // namespace onnx_moe
