#include "experts/resident_set.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace onnx_moe {

ResidentSet::ResidentSet(const ExpertBank& bank, int64_t capacity, int64_t layer_floor,
                         std::unique_ptr<CachePolicy> policy)
    : bank_(bank),
      capacity_(capacity),
      layer_floor_(layer_floor),
      policy_(std::move(policy)),
      layer_counts_(static_cast<size_t>(bank.layers)),
      entries_(static_cast<size_t>(bank.size())),
      of_layers_(static_cast<size_t>(bank.layers), Tournament(bank.experts)),
      layers_above_their_floor_(bank.layers),
      layer_moved_(static_cast<size_t>(bank.layers)) {
  moved_.reserve(entries_.size());
  moved_layers_.reserve(layer_moved_.size());
  resize(capacity, layer_floor);
}

void ResidentSet::resize(int64_t capacity, int64_t layer_floor) {
  require(capacity >= 1, "the cache has ", capacity, " slots: it needs at least 1");
  require(layer_floor >= 0 && layer_floor <= capacity / bank_.layers, "a floor of ", layer_floor, " slots in each of ",
          bank_.layers, " layers does not fit into ", capacity, " slots: lower the floor to ", capacity / bank_.layers,
          " or raise the budget");
  capacity_ = capacity;
  layer_floor_ = layer_floor;
  for (int64_t layer = 0; layer < bank_.layers; ++layer) move_layer(layer);
}

void ResidentSet::start_with(int64_t key, double uses) {
  at(key).last_use = ++uses_;
  policy_->start_with(key, uses);
}

void ResidentSet::begin_visit(int64_t layer) {
  policy_->visit(layer);
  move_layer(layer);
}

void ResidentSet::use(int64_t key) {
  at(key).last_use = ++uses_;
  policy_->use(key);
  if (at(key).resident) move(key);
}

void ResidentSet::prefetch(int64_t key) const {
  __builtin_prefetch(&at(key), 1);
  policy_->prefetch(key);
}

void ResidentSet::lease(int64_t key) {
  require(contains(key), "expert key ", key, " is leased, but holds no slot");
  if (at(key).leases++ == 0) move(key);
}

void ResidentSet::release(int64_t key) {
  require(at(key).leases > 0, "expert key ", key, " is released, but not leased");
  if (--at(key).leases == 0) move(key);
}

void ResidentSet::reorder(int64_t key) {
  if (at(key).resident) move(key);
}

void ResidentSet::widen(int64_t experts) {
  require(bank_.layers == 1, "a set of ", bank_.layers, " layers cannot widen: their keys would change");
  if (experts <= bank_.experts) return;
  const int64_t before = bank_.experts;
  bank_.experts = std::max(experts, 2 * before);
  entries_.resize(static_cast<size_t>(bank_.size()));
  of_layers_.front() = Tournament(bank_.experts);
  for (int64_t key = 0; key < before; ++key) reorder(key);
}

void ResidentSet::insert(int64_t key) {
  require(!full() && !contains(key), "expert key ", key,
          " cannot take a slot: ", full() ? "all are taken" : "it holds one");
  at(key).resident = true;
  ++count_;
  ++layer_counts_[static_cast<size_t>(bank_.layer_of(key))];
  move(key);
  move_layer(bank_.layer_of(key));  // perhaps above its floor now
}

void ResidentSet::erase(int64_t key) {
  require(contains(key) && at(key).leases == 0, "expert key ", key, " cannot give up its slot: it ",
          contains(key) ? "is leased" : "holds none");
  at(key).resident = false;
  --count_;
  --layer_counts_[static_cast<size_t>(bank_.layer_of(key))];
  move(key);
  move_layer(bank_.layer_of(key));
}

std::optional<int64_t> ResidentSet::victim(int64_t layer) {
  settle();
  const int64_t above = layers_above_their_floor_.winner();
  int64_t first = earlier(first_of(layer), above == Tournament::kNobody ? above : first_of(above));
  if (first == Tournament::kNobody) {
    for (int64_t other = 0; other < bank_.layers; ++other) first = earlier(first, first_of(other));
  }
  if (first == Tournament::kNobody) return std::nullopt;
  return first;
}

bool ResidentSet::goes_before(int64_t a, int64_t b) const {
  if (policy_->goes_before(a, b)) return true;
  if (policy_->goes_before(b, a)) return false;
  return at(a).last_use != at(b).last_use ? at(a).last_use < at(b).last_use : a < b;
}

int64_t ResidentSet::first_of(int64_t layer) const {
  const int64_t expert = of_layers_[static_cast<size_t>(layer)].winner();
  return expert == Tournament::kNobody ? expert : bank_.key(layer, expert);
}

int64_t ResidentSet::earlier(int64_t a, int64_t b) const {
  if (a == Tournament::kNobody) return b;
  return b == Tournament::kNobody || goes_before(a, b) ? a : b;
}

void ResidentSet::move(int64_t key) {
  if (at(key).moved) return;
  at(key).moved = true;
  moved_.push_back(key);
}

void ResidentSet::move_layer(int64_t layer) {
  if (layer_moved_[static_cast<size_t>(layer)]) return;
  layer_moved_[static_cast<size_t>(layer)] = true;
  moved_layers_.push_back(layer);
}

// A node of a tournament is right once all that moved below it have been placed, in any order: each of them works out
// every node that it won before or wins now.
void ResidentSet::settle() {
  for (const int64_t key : moved_) {
    at(key).moved = false;
    place(key);
  }
  moved_.clear();
  for (const int64_t layer : moved_layers_) {
    layer_moved_[static_cast<size_t>(layer)] = false;
    place_layer(layer);
  }
  moved_layers_.clear();
}

void ResidentSet::place(int64_t key) {
  const int64_t layer = bank_.layer_of(key);
  const bool may_go = at(key).resident && at(key).leases == 0;
  const int64_t first = first_of(layer);
  of_layers_[static_cast<size_t>(layer)].place(bank_.expert_of(key), may_go, [&](int64_t a, int64_t b) {
    return goes_before(bank_.key(layer, a), bank_.key(layer, b));
  });
  if (first_of(layer) != first || first == key) place_layer(layer);
}

void ResidentSet::place_layer(int64_t layer) {
  const bool takes_part = count(layer) > layer_floor_ && first_of(layer) != Tournament::kNobody;
  layers_above_their_floor_.place(layer, takes_part,
                                  [&](int64_t a, int64_t b) { return goes_before(first_of(a), first_of(b)); });
}

}  // namespace onnx_moe
