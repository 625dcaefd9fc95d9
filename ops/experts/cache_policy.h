// Which resident expert goes first when a slot is needed. A policy orders experts by what it has seen of their use and
// decides nothing else: residency, leases, floors and ties are the ResidentSet's.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "experts/bank.h"

namespace onnx_moe {

class CachePolicy {
 public:
  virtual ~CachePolicy() = default;

  // A call of `layer` begins. It may change how keys of this layer compare with those of others.
  virtual void visit(int64_t /*layer*/) {}
  // A call of the visited layer uses `key`, resident or not; once a call, however many tokens chose it. It may change
  // how this key compares.
  virtual void use(int64_t /*key*/) {}
  // Whether `a` goes before `b`. Neither before the other is a tie: the least recently used goes, then the lowest key.
  virtual bool goes_before(int64_t a, int64_t b) const = 0;
};

// Least recently used: everything is a tie.
class LruPolicy final : public CachePolicy {
 public:
  bool goes_before(int64_t, int64_t) const override { return false; }
};

// Least Σ decay^(visits of its layer since), over the visits that used an expert. decay lies in (0, 1]: 0.95 halves a
// use in about 14 tokens; 1 is a plain count. Equal histories, of whatever layers, compare as exactly equal.
class DecayedLfuPolicy final : public CachePolicy {
 public:
  DecayedLfuPolicy(const ExpertBank& bank, double decay);

  void visit(int64_t layer) override { ++visits_[static_cast<size_t>(layer)]; }
  void use(int64_t key) override;
  bool goes_before(int64_t a, int64_t b) const override;

 private:
  struct Use {
    double frequency = 0;  // as of the visit below
    int64_t visit = 0;
  };

  int64_t age(int64_t key) const;
  double power(int64_t exponent) const;

  ExpertBank bank_;
  double decay_;
  std::vector<double> powers_;
  std::vector<int64_t> visits_;  // by layer
  std::vector<Use> uses_;        // by key
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
  bool goes_before(int64_t a, int64_t b) const override;

 private:
  std::vector<bool> pinned_;  // by key
  std::unique_ptr<CachePolicy> others_;
};

}  // namespace onnx_moe
