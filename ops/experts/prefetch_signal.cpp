#include "experts/prefetch_signal.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "experts/cross_layer_table.h"

namespace onnx_moe {

namespace {

constexpr double kCurrentBonus = 2.0;

using Frequencies = std::vector<RoutingHistory::Frequency>;

void add(Frequencies& frequencies, int32_t expert, double value) {
  const auto known = std::find_if(frequencies.begin(), frequencies.end(),
                                  [&](const RoutingHistory::Frequency& each) { return each.expert == expert; });
  if (known == frequencies.end()) {
    frequencies.push_back({expert, value});
  } else {
    known->value += value;
  }
}

std::vector<int32_t> best(Frequencies frequencies, int64_t most) {
  std::stable_sort(frequencies.begin(), frequencies.end(),
                   [](const auto& a, const auto& b) { return a.value > b.value; });
  std::vector<int32_t> experts;
  for (const RoutingHistory::Frequency& each : frequencies) {
    if (static_cast<int64_t>(experts.size()) == most) break;
    experts.push_back(each.expert);
  }
  return experts;
}

std::vector<int32_t> favour_current(const std::vector<int32_t>& current, Frequencies frequencies, int64_t most) {
  if (frequencies.empty()) return predict_repeat(current, most);
  for (const int32_t expert : current) add(frequencies, expert, kCurrentBonus);
  return best(std::move(frequencies), most);
}

// What a layer's own calls tell of its next one.
class TemporalSignal final : public PrefetchSignal {
 public:
  TemporalSignal(PrefetchSignalKind kind, const ExpertBank& bank, const PrefetchSignalOptions& options)
      : kind_(kind), options_(options), histories_(static_cast<size_t>(bank.layers), RoutingHistory(options.window)) {}

  void routed(const RoutedCall& call) override {
    histories_[static_cast<size_t>(call.layer)].record(call.experts, call.count);
  }

  void predict(int64_t layer, int64_t most, std::vector<int32_t>& experts) const override {
    const RoutingHistory& history = histories_[static_cast<size_t>(layer)];
    const std::vector<int32_t> current = history.last();
    if (kind_ == PrefetchSignalKind::kRepeat) {
      experts = predict_repeat(current, most);
    } else if (kind_ == PrefetchSignalKind::kHistory) {
      experts = predict_history(current, history, most, options_.min_confidence);
    } else {
      experts = predict_recency(current, history, most, options_.decay);
    }
  }

 private:
  PrefetchSignalKind kind_;
  PrefetchSignalOptions options_;
  std::vector<RoutingHistory> histories_;  // by layer
};

// The next layer's own gate, on the hidden states that this layer had.
class NextGateSignal final : public PrefetchSignal {
 public:
  explicit NextGateSignal(const ExpertBank& bank) : chosen_(static_cast<size_t>(bank.layers)) {}

  void routed(const RoutedCall& call) override {
    const auto next = static_cast<size_t>(call.layer) + 1;
    if (next < chosen_.size()) {
      chosen_[next].assign(call.next_gate_choice, call.next_gate_choice + call.num_next_gate_choice);
    }
  }

  void predict(int64_t layer, int64_t most, std::vector<int32_t>& experts) const override {
    experts = predict_repeat(chosen_[static_cast<size_t>(layer)], most);
  }

 private:
  std::vector<std::vector<int32_t>> chosen_;  // by the layer that is predicted
};

}  // namespace

RoutingHistory::RoutingHistory(int64_t window) : window_(static_cast<size_t>(window)) {
  require(window >= 1, "the window of a routing history is ", window, " calls: it needs at least 1");
}

void RoutingHistory::record(const int32_t* experts, int64_t count) {
  if (calls_.size() == window_) calls_.pop_front();
  calls_.emplace_back(experts, experts + count);
}

std::vector<int32_t> RoutingHistory::last() const { return calls_.empty() ? std::vector<int32_t>() : calls_.back(); }

Frequencies RoutingHistory::frequencies(double decay) const {
  std::vector<double> weights;
  for (size_t age = calls_.size(); age-- > 0;) weights.push_back(std::pow(decay, static_cast<double>(age)));
  return frequencies(weights);
}

Frequencies RoutingHistory::frequencies(const std::vector<double>& weights) const {
  require(weights.size() == calls_.size(), weights.size(), " weights are given for a history of ", calls_.size(),
          " calls: give one for each");
  Frequencies frequencies;
  for (size_t call = 0; call < calls_.size(); ++call) {
    for (const int32_t expert : calls_[call]) add(frequencies, expert, weights[call]);
  }
  return frequencies;
}

std::vector<int32_t> predict_repeat(const std::vector<int32_t>& current, int64_t most) {
  const auto count = std::min(static_cast<int64_t>(current.size()), most);
  return {current.begin(), current.begin() + count};
}

std::vector<int32_t> predict_history(const std::vector<int32_t>& current, const RoutingHistory& history, int64_t most,
                                     double min_confidence) {
  Frequencies frequencies = history.frequencies(1.0);
  double total = 0;
  for (const RoutingHistory::Frequency& each : frequencies) total += each.value;
  const auto rare = [&](const RoutingHistory::Frequency& each) { return each.value / total < min_confidence; };
  frequencies.erase(std::remove_if(frequencies.begin(), frequencies.end(), rare), frequencies.end());
  return frequencies.empty() ? predict_repeat(current, most) : best(std::move(frequencies), most);
}

std::vector<int32_t> predict_recency(const std::vector<int32_t>& current, const RoutingHistory& history, int64_t most,
                                     double decay) {
  return favour_current(current, history.frequencies(decay), most);
}

std::vector<int32_t> predict_weighted(const std::vector<int32_t>& current, const RoutingHistory& history, int64_t most,
                                      const std::vector<double>& weights) {
  return favour_current(current, history.frequencies(weights), most);
}

namespace {

struct KindName {
  const char* name;
  PrefetchSignalKind kind;
};

constexpr KindName kKinds[] = {{"off", PrefetchSignalKind::kNone},
                               {"repeat", PrefetchSignalKind::kRepeat},
                               {"history", PrefetchSignalKind::kHistory},
                               {"recency", PrefetchSignalKind::kRecency},
                               {"cross-layer", PrefetchSignalKind::kCrossLayer},
                               {"next-gate", PrefetchSignalKind::kNextGate}};

}  // namespace

const char* name_of(PrefetchSignalKind kind) {
  return std::find_if(std::begin(kKinds), std::end(kKinds), [&](const KindName& each) { return each.kind == kind; })
      ->name;
}

PrefetchSignalKind parse_prefetch_signal(const char* entry, const std::string& text) {
  std::string names;
  for (const auto& [name, kind] : kKinds) {
    if (text == name) return kind;
    names += names.empty() ? name : std::string(", ") + name;
  }
  fail("session entry ", entry, " is '", text, "': use one of ", names);
}

std::unique_ptr<PrefetchSignal> make_prefetch_signal(PrefetchSignalKind kind, const ExpertBank& bank,
                                                     const PrefetchSignalOptions& options) {
  switch (kind) {
    case PrefetchSignalKind::kNone:
      return nullptr;
    case PrefetchSignalKind::kCrossLayer:
      return std::make_unique<CrossLayerTable>(bank);
    case PrefetchSignalKind::kNextGate:
      return std::make_unique<NextGateSignal>(bank);
    default:
      return std::make_unique<TemporalSignal>(kind, bank, options);
  }
}

}  // namespace onnx_moe
