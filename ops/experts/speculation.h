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

// Whether reading ahead for a layer pays. Candidates are judged whether they are read or not, so that a layer earns its
// reads before the first one and can lose and earn them again.
class PrefetchGovernor {
 public:
  // least_useful: share of the candidates that must turn out useful, in [0, 1]; 0: always on.
  explicit PrefetchGovernor(double least_useful);
  bool on() const { return on_; }
  void judge(bool useful);

 private:
  double least_useful_;
  bool on_;
  int64_t judged_ = 0;  // of the present window
  int64_t useful_ = 0;
};

class Speculation {
 public:
  // Reads for one call of a layer, at most; candidates likewise, in either half of a prediction.
  static constexpr int64_t kMostReads = 2;
  // Experts that are predicted for each that will be used: the next best cost nothing while they are resident.
  static constexpr int64_t kWiden = 2;

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
  bool on(int64_t layer) const {
    const Layer& of = layers_[static_cast<size_t>(layer)];
    return of.governors[0].on() || of.governors[1].on();
  }

 private:
  struct Candidate {
    int64_t key;
    size_t half;
  };
  struct Layer {
    // Of the likelier half of a prediction, as many as a call uses, and of the other: they err differently.
    std::array<PrefetchGovernor, 2> governors;
    PrefetchCounts counts;
    std::vector<int64_t> predicted;     // keys, of the next call
    std::vector<Candidate> candidates;  // likewise
    std::vector<Entry> entries;
  };

  void propose(Layer& layer, int64_t likely, const ResidentSet& residents);

  ExpertBank bank_;
  std::unique_ptr<PrefetchSignal> signal_;
  std::vector<Layer> layers_;
  std::vector<int32_t> prediction_;
};

}  // namespace onnx_moe
