// Which resident expert goes first when a slot is needed. A policy orders experts by what it has seen of their use and
// decides nothing else: residency, leases, floors and ties are the ResidentSet's.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "experts/bank.h"
#include "experts/use_counters.h"

namespace onnx_moe {

class CachePolicy {
 public:
  virtual ~CachePolicy() = default;

  // A call of `layer` begins. It may change how keys of this layer compare with those of others.
  virtual void visit(int64_t /*layer*/) {}
  // A call of the visited layer uses `key`, resident or not; once a call, however many tokens chose it. It may change
  // how this key compares.
  virtual void use(int64_t /*key*/) {}
  // Asks the processor for what use() will read.
  virtual void prefetch(int64_t /*key*/) const {}
  // Before the first visit: `key` was used so much by an earlier session.
  virtual void start_with(int64_t /*key*/, double /*uses*/) {}
  // Whether `a` goes before `b`. Neither before the other is a tie: the least recently used goes, then the lowest key.
  virtual bool goes_before(int64_t a, int64_t b) const = 0;
};

// Least recently used: everything is a tie.
class LruPolicy final : public CachePolicy {
 public:
  bool goes_before(int64_t, int64_t) const override { return false; }
};

// Least used, by decayed counters.
class DecayedLfuPolicy final : public CachePolicy {
 public:
  DecayedLfuPolicy(const ExpertBank& bank, double decay) : counters_(bank, decay) {}

  void visit(int64_t layer) override { counters_.visit(layer); }
  void use(int64_t key) override { counters_.use(key); }
  void prefetch(int64_t key) const override { counters_.prefetch(key); }
  void start_with(int64_t key, double uses) override { counters_.set(key, uses); }
  bool goes_before(int64_t a, int64_t b) const override { return counters_.less(a, b); }

 private:
  UseCounters counters_;
};

// Belady's: the expert whose next use is furthest away. It knows the future, so it bounds what any policy can do.
class BeladyPolicy final : public CachePolicy {
 public:
  // `uses`: the keys of every later call of use(), in order; use() throws an Error where it is called with another.
  BeladyPolicy(const ExpertBank& bank, std::vector<int64_t> uses);

  void use(int64_t key) override;
  bool goes_before(int64_t a, int64_t b) const override;

 private:
  std::vector<int64_t> uses_;
  std::vector<int64_t> next_;      // by position in uses_: position of the same key's next use
  std::vector<int64_t> next_use_;  // by key
  size_t position_ = 0;
};

// Keeps `pinned` as long as anything else can go; among the others, and among them, another policy decides.
class PinnedPolicy final : public CachePolicy {
 public:
  PinnedPolicy(const ExpertBank& bank, const std::vector<int64_t>& pinned, std::unique_ptr<CachePolicy> others);

  void visit(int64_t layer) override { others_->visit(layer); }
  void use(int64_t key) override { others_->use(key); }
  void prefetch(int64_t key) const override { others_->prefetch(key); }
  void start_with(int64_t key, double uses) override { others_->start_with(key, uses); }
  bool goes_before(int64_t a, int64_t b) const override;

 private:
  std::vector<bool> pinned_;  // by key
  std::unique_ptr<CachePolicy> others_;
};

}  // namespace onnx_moe
