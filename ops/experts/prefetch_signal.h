// Which experts a layer is about to use: predictions from routing alone. Plain arithmetic without threads, clocks or
// input and output, so that the engine, the simulator and the C API ask the same code.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "experts/bank.h"

namespace onnx_moe {

// The last calls of one layer.
class RoutingHistory {
 public:
  // window: calls that it keeps, at least 1.
  explicit RoutingHistory(int64_t window);

  void record(const int32_t* experts, int64_t count);
  void clear() { calls_.clear(); }
  bool empty() const { return calls_.empty(); }
  int64_t size() const { return static_cast<int64_t>(calls_.size()); }
  // The newest call's experts; none before the first.
  std::vector<int32_t> last() const;

  struct Frequency {
    int32_t expert;
    double value;
  };
  // Σ decay^age over the calls that hold an expert, once for each time that they hold it; the newest call has age 0.
  // In the order in which the experts first occur, and summed in it, oldest call first.
  std::vector<Frequency> frequencies(double decay) const;
  // Likewise with weights of the caller's, one for each call, oldest first.
  std::vector<Frequency> frequencies(const std::vector<double>& weights) const;

 private:
  size_t window_;
  std::deque<std::vector<int32_t>> calls_;
};

// ---- rankings of a layer's own past, best first, at most `most` experts; `current` are those of its newest call ----

// `current` itself.
std::vector<int32_t> predict_repeat(const std::vector<int32_t>& current, int64_t most);
// By frequency, without decay; of those with at least min_confidence of all uses. `current` when there is none.
std::vector<int32_t> predict_history(const std::vector<int32_t>& current, const RoutingHistory& history, int64_t most,
                                     double min_confidence);
// By decayed frequency, plus 2 for each current expert. Ties keep the order of the frequencies, then of `current`.
std::vector<int32_t> predict_recency(const std::vector<int32_t>& current, const RoutingHistory& history, int64_t most,
                                     double decay);
// Likewise with weights of the caller's in place of the decay, such as attention to the tokens of those calls.
std::vector<int32_t> predict_weighted(const std::vector<int32_t>& current, const RoutingHistory& history, int64_t most,
                                      const std::vector<double>& weights);

// ---- signals that watch a whole model ----

// A call of a layer: its distinct experts in the order of their first token, and, where the model brings the next
// layer's gate, what that gate chooses on this call's hidden states, best first.
struct RoutedCall {
  int64_t layer;
  const int32_t* experts;
  int64_t count;
  const int32_t* next_gate_choice = nullptr;
  int64_t num_next_gate_choice = 0;
};

class PrefetchSignal {
 public:
  virtual ~PrefetchSignal() = default;
  // Every call, in order.
  virtual void routed(const RoutedCall& call) = 0;
  // Experts of the layer's next call, the likeliest first, at most `most`; none while nothing is known.
  virtual void predict(int64_t layer, int64_t most, std::vector<int32_t>& experts) const = 0;
};

enum class PrefetchSignalKind { kNone, kRepeat, kHistory, kRecency, kCrossLayer, kNextGate };

struct PrefetchSignalOptions {
  int64_t window = 32;           // calls of history
  double decay = 0.9;            // of a call's weight, for each later one
  double min_confidence = 0.05;  // least share of a window's uses (history)
};

const char* name_of(PrefetchSignalKind kind);
// "off", "repeat", "history", "recency", "cross-layer" or "next-gate"; throws an Error that names `entry` otherwise.
PrefetchSignalKind parse_prefetch_signal(const char* entry, const std::string& text);

// Null for kNone.
std::unique_ptr<PrefetchSignal> make_prefetch_signal(PrefetchSignalKind kind, const ExpertBank& bank,
                                                     const PrefetchSignalOptions& options = {});

}  // namespace onnx_moe
