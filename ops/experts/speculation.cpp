#include "experts/speculation.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace onnx_moe {

namespace {

constexpr int64_t kWindow = 32;  // candidates to a verdict

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

PrefetchGovernor::PrefetchGovernor(double least_useful) : least_useful_(least_useful), on_(least_useful <= 0) {}

void PrefetchGovernor::judge(bool useful) {
  useful_ += useful;
  if (++judged_ < kWindow) return;
  on_ = static_cast<double>(useful_) >= least_useful_ * static_cast<double>(judged_);
  judged_ = useful_ = 0;
}

Speculation::Speculation(std::unique_ptr<PrefetchSignal> signal, const ExpertBank& bank, double least_useful)
    : bank_(bank),
      signal_(std::move(signal)),
      layers_(static_cast<size_t>(bank.layers), Layer{PrefetchGovernor(least_useful), {}, {}, {}, {}}) {}

std::vector<Speculation::Entry> Speculation::judge(int64_t layer, const std::vector<int64_t>& keys) {
  Layer& called = layers_[static_cast<size_t>(layer)];
  if (!called.predicted.empty()) called.counts.used += static_cast<int64_t>(keys.size());
  for (const int64_t key : called.predicted) called.counts.correct += is_among(keys, key);
  for (const int64_t key : called.candidates) {
    const bool useful = is_among(keys, key);
    ++called.counts.candidates;
    called.counts.useful += useful;
    called.governor.judge(useful);
  }
  called.predicted.clear();
  called.candidates.clear();
  return std::exchange(called.entries, {});
}

void Speculation::observe(const RoutedCall& call, int64_t most, const ResidentSet& residents,
                          std::vector<int64_t>& keys) {
  keys.clear();
  signal_->routed(call);
  const int64_t layer = (call.layer + 1) % bank_.layers;
  Layer& next = layers_[static_cast<size_t>(layer)];
  if (!next.predicted.empty()) return;  // of another call, which runs at the same time
  signal_->predict(layer, most, prediction_);
  for (const int32_t expert : prediction_) {
    const int64_t key = bank_.key(layer, expert);
    next.predicted.push_back(key);
    const bool read = static_cast<int64_t>(next.candidates.size()) < kMostReads && !residents.contains(key);
    if (read) next.candidates.push_back(key);
  }
  next.counts.predicted += static_cast<int64_t>(next.predicted.size());
  if (next.governor.on()) keys = next.candidates;
}

void Speculation::put(const Entry& entry) {
  Layer& layer = layers_[static_cast<size_t>(bank_.layer_of(entry.key))];
  layer.entries.push_back(entry);
  ++layer.counts.issued;
}

}  // namespace onnx_moe
