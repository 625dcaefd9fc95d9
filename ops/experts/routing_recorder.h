// Records what the routers of a session choose: counts by layer, phase and expert, or every call as well. Memory is
// bounded: counters have a fixed size, and calls past the limit are counted and dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/routing_sink.h"

namespace onnx_moe {

enum class RoutingPhase : uint8_t { kPrefill = 0, kDecode = 1 };
inline constexpr int kPhases = 2;

enum class TraceMode { kCounters, kFull };

struct RecordedLayer {
  std::string name;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  int64_t calls[kPhases] = {};
  int64_t tokens[kPhases] = {};
  std::vector<int64_t> counts[kPhases];  // by expert: how often it was chosen
  std::vector<double> mass[kPhases];     // by expert: the sum of its weights
};

// Calls in the order in which they ended, column by column.
struct RecordedCalls {
  std::vector<int32_t> layers;
  std::vector<uint8_t> phases;
  std::vector<int32_t> requests;
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

class RoutingRecorder {
 public:
  // limit: expert ids that full recording keeps.
  RoutingRecorder(TraceMode mode, int64_t limit) : mode_(mode), limit_(limit) {}

  // A layer's number is its place among the first calls, which is the order of execution; -1 before.
  int64_t add_layer(const std::string& name);
  void record(int64_t layer, const RoutedTokens& tokens, RoutingPhase phase);

  // Later calls belong to `request` and, unless phase is kByShape, to this phase.
  static constexpr int32_t kByShape = -1;
  void label(int32_t phase, int32_t request);
  // What calls are where no label says it: kByShape, or what the host knows of them.
  void set_default_phase(int32_t phase);
  void clear();

  // Runs body(layers in order of execution, calls, dropped calls) while nothing is recorded.
  template <typename Body>
  void read(Body&& body) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<const RecordedLayer*> ordered;
    for (const size_t index : execution_order_) ordered.push_back(&layers_[index]);
    body(ordered, calls_, dropped_);
  }

  TraceMode mode() const { return mode_; }
  int64_t limit() const { return limit_; }

 private:
  void count(RecordedLayer& layer, const RoutedTokens& tokens, RoutingPhase phase) const;
  void keep(int64_t position, const RoutedTokens& tokens, RoutingPhase phase);

  mutable std::mutex mutex_;
  TraceMode mode_;
  int64_t limit_;
  int32_t phase_ = kByShape;
  int32_t default_phase_ = kByShape;
  int32_t request_ = 0;
  std::vector<RecordedLayer> layers_;  // as kernels were made
  std::vector<int64_t> positions_;     // of a layer in the order of execution; -1 before its first call
  std::vector<size_t> execution_order_;
  RecordedCalls calls_;
  int64_t dropped_ = 0;
};

// The recorder that the kernels of a session share under a name; it lives as long as one of them does.
std::shared_ptr<RoutingRecorder> open_recorder(const std::string& name, TraceMode mode, int64_t limit);
// Throws an Error where no session records under this name.
std::shared_ptr<RoutingRecorder> find_recorder(const std::string& name);

}  // namespace onnx_moe
