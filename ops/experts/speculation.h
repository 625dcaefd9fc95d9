// What to read before anybody asks, and whether it was worth it. Bookkeeping alone: no bytes, no threads, no clock.
//
// Reads go to places of their own, beside the cache, and stay until the layer that they are for has been called: then
// what is used moves into the cache as any missing expert does, and the rest is dropped. So the cache holds and evicts
// exactly what it would without prefetching.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "experts/prefetch_signal.h"
#include "experts/resident_set.h"

namespace onnx_moe {

// Of a layer, or of all. An expert that was predicted, is not resident and is among the first few such of a call is a
// candidate; it is read where reading pays.
struct PrefetchCounts {
  int64_t predicted = 0;   // experts that the signal named
  int64_t correct = 0;     // of these, used: correct / predicted is the precision, correct / used the recall
  int64_t used = 0;        // experts of the calls that were predicted
  int64_t candidates = 0;  // judged so far
  int64_t useful = 0;      // of these, used
  int64_t issued = 0;      // reads begun: timely + late + wasted + cancelled + those not judged yet
  int64_t timely = 0;      // there when the call came
  int64_t late = 0;        // on the way
  int64_t wasted = 0;      // read for nothing
  int64_t cancelled = 0;   // taken back before a reader had begun

  PrefetchCounts& operator+=(const PrefetchCounts& other);
};

// How many of the last candidates were useful: each counts less, the more have come since.
class UsefulShare {
 public:
  // memory: candidates after which one counts 1/e.
  explicit UsefulShare(double memory) : fade_(1 - 1 / memory) {}
  void judge(bool useful);
  double judged() const { return judged_; }
  // As if `more` further ones had been judged, of which that share was useful.
  double with(double more, double share) const { return (useful_ + more * share) / (judged_ + more); }

 private:
  double fade_;
  double judged_ = 0;
  double useful_ = 0;
};

class Speculation {
 public:
  // Reads for one call of a layer, at most; candidates likewise, in either half of a prediction.
  static constexpr int64_t kMostReads = 2;
  // Experts that are predicted for each that will be used: the next best cost nothing while they are resident.
  static constexpr int64_t kWiden = 2;

  // least_useful: share of the candidates that must turn out useful, in [0, 1]; 0: all are read.
  Speculation(std::unique_ptr<PrefetchSignal> signal, const ExpertBank& bank, double least_useful);

  // An expert that has been read, or is being read, into a place.
  struct Entry {
    int64_t key;
    int64_t place;
  };

  // A call of a layer has come with these distinct experts. Returns the entries of that layer, which are the caller's
  // from now on.
  std::vector<Entry> judge(int64_t layer, const std::vector<int64_t>& keys);

  // The same call: predicts experts of the next layer, of which it will use `likely`. Returns what to read, the
  // likeliest first; what is read is put() in.
  std::vector<int64_t> observe(const RoutedCall& call, int64_t likely, const ResidentSet& residents);
  void put(const Entry& entry);

  PrefetchCounts& counts(int64_t layer) { return layers_[static_cast<size_t>(layer)].counts; }
  const PrefetchCounts& counts(int64_t layer) const { return layers_[static_cast<size_t>(layer)].counts; }
  // Whether reading ahead for a layer pays. Candidates are judged whether they are read or not, so that reads are
  // earned before the first one, and can be lost and earned again.
  bool on(int64_t layer) const {
    const Layer& of = layers_[static_cast<size_t>(layer)];
    return pays(of, 0) || pays(of, 1);
  }

 private:
  static constexpr double kLayerMemory = 64;
  static constexpr double kModelMemory = 1024;
  // Of the likelier half of a prediction, as many as a call uses, and of the other: they err differently.
  using PerHalf = std::array<UsefulShare, 2>;
  struct Candidate {
    int64_t key;
    size_t half;
  };
  struct Layer {
    PerHalf useful{UsefulShare(kLayerMemory), UsefulShare(kLayerMemory)};
    PrefetchCounts counts;
    std::vector<int64_t> predicted;     // keys, of the next call
    std::vector<Candidate> candidates;  // likewise
    std::vector<Entry> entries;
  };

  bool pays(const Layer& layer, size_t half) const;
  void propose(Layer& layer, int64_t likely, const ResidentSet& residents);

  ExpertBank bank_;
  std::unique_ptr<PrefetchSignal> signal_;
  double least_useful_;
  PerHalf useful_{UsefulShare(kModelMemory), UsefulShare(kModelMemory)};  // of all layers
  std::vector<Layer> layers_;
  std::vector<int32_t> prediction_;
};

}  // namespace onnx_moe
