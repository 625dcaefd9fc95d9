#include "experts/speculation.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace onnx_moe {

namespace {

// A model of hundreds of layers shows in a token or two whether its signal is good, a single layer after dozens: what
// all layers had counts as much as so many candidates of the layer's own.
constexpr double kPrior = 16;
// Candidates of all layers before the first verdict.
constexpr double kLeastJudged = 32;

bool is_among(const std::vector<int64_t>& keys, int64_t key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

}  // namespace

PrefetchCounts& PrefetchCounts::operator+=(const PrefetchCounts& other) {
  predicted += other.predicted;
  correct += other.correct;
  used += other.used;
  candidates += other.candidates;
  useful += other.useful;
  issued += other.issued;
  timely += other.timely;
  late += other.late;
  wasted += other.wasted;
  cancelled += other.cancelled;
  return *this;
}

void UsefulShare::judge(bool useful) {
  judged_ = fade_ * judged_ + 1;
  useful_ = fade_ * useful_ + (useful ? 1 : 0);
}

Speculation::Speculation(std::unique_ptr<PrefetchSignal> signal, const ExpertBank& bank, double least_useful)
    : bank_(bank), signal_(std::move(signal)), least_useful_(least_useful), layers_(static_cast<size_t>(bank.layers)) {}

bool Speculation::pays(const Layer& layer, size_t half) const {
  if (least_useful_ <= 0) return true;
  const UsefulShare& of_all = useful_[half];
  if (layer.useful[half].judged() <= 0 || of_all.judged() < kLeastJudged) return false;
  return layer.useful[half].with(kPrior, of_all.with(0, 0)) >= least_useful_;
}

std::vector<Speculation::Entry> Speculation::judge(int64_t layer, const std::vector<int64_t>& keys) {
  Layer& called = layers_[static_cast<size_t>(layer)];
  if (!called.predicted.empty()) called.counts.used += static_cast<int64_t>(keys.size());
  for (const int64_t key : called.predicted) called.counts.correct += is_among(keys, key);
  for (const Candidate& candidate : called.candidates) {
    const bool useful = is_among(keys, candidate.key);
    ++called.counts.candidates;
    called.counts.useful += useful;
    called.useful[candidate.half].judge(useful);
    useful_[candidate.half].judge(useful);
  }
  called.predicted.clear();
  called.candidates.clear();
  return std::exchange(called.entries, {});
}

std::vector<int64_t> Speculation::observe(const RoutedCall& call, int64_t likely, const ResidentSet& residents) {
  signal_->routed(call);
  const int64_t layer = (call.layer + 1) % bank_.layers;
  Layer& next = layers_[static_cast<size_t>(layer)];
  if (!next.predicted.empty()) return {};  // for another call, which runs at the same time
  signal_->predict(layer, kWiden * likely, prediction_);
  for (const int32_t expert : prediction_) next.predicted.push_back(bank_.key(layer, expert));
  next.counts.predicted += static_cast<int64_t>(next.predicted.size());
  propose(next, likely, residents);
  std::vector<int64_t> keys;
  for (const Candidate& candidate : next.candidates) {
    const bool read = pays(next, candidate.half) && static_cast<int64_t>(keys.size()) < kMostReads;
    if (read) keys.push_back(candidate.key);
  }
  return keys;
}

void Speculation::propose(Layer& layer, int64_t likely, const ResidentSet& residents) {
  int64_t proposed[2] = {};
  for (size_t rank = 0; rank < layer.predicted.size(); ++rank) {
    const int64_t key = layer.predicted[rank];
    const size_t half = static_cast<int64_t>(rank) < likely ? 0 : 1;
    if (residents.contains(key) || proposed[half] == kMostReads) continue;
    ++proposed[half];
    layer.candidates.push_back({key, half});
  }
}

void Speculation::put(const Entry& entry) {
  Layer& layer = layers_[static_cast<size_t>(bank_.layer_of(entry.key))];
  layer.entries.push_back(entry);
  ++layer.counts.issued;
}

}  // namespace onnx_moe
