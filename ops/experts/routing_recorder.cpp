#include "experts/routing_recorder.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "core/error.h"

namespace onnx_moe {

namespace {

struct Recorders {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<RoutingRecorder>> by_name;
};

Recorders& recorders() {
  static Recorders instance;
  return instance;
}

void check_phase(int32_t phase) {
  require(phase >= RoutingRecorder::kByShape && phase < kPhases, "phase ", phase,
          " is unknown: use 0 (prefill), 1 (decode) or -1 (by the shape of each call)");
}

}  // namespace

int64_t RoutingRecorder::add_layer(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t index = layers_.size();
  layers_.emplace_back().name = name.empty() ? "router " + std::to_string(index) : name;
  positions_.push_back(-1);
  return static_cast<int64_t>(index);
}

void RoutingRecorder::record(int64_t layer, const RoutedTokens& tokens, RoutingPhase phase) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int32_t known = phase_ != kByShape ? phase_ : default_phase_;
  if (known != kByShape) phase = static_cast<RoutingPhase>(known);
  const auto index = static_cast<size_t>(layer);
  if (positions_[index] < 0) {
    positions_[index] = static_cast<int64_t>(execution_order_.size());
    execution_order_.push_back(index);
  }
  count(layers_[index], tokens, phase);
  if (mode_ == TraceMode::kFull) keep(positions_[index], tokens, phase);
}

void RoutingRecorder::count(RecordedLayer& layer, const RoutedTokens& tokens, RoutingPhase phase) const {
  const auto at = static_cast<size_t>(phase);
  if (layer.num_experts != tokens.num_experts) {
    layer.num_experts = tokens.num_experts;
    layer.top_k = tokens.top_k;
    for (int each = 0; each < kPhases; ++each) {
      layer.counts[each].assign(static_cast<size_t>(tokens.num_experts), 0);
      layer.mass[each].assign(static_cast<size_t>(tokens.num_experts), 0.0);
    }
  }
  ++layer.calls[at];
  layer.tokens[at] += tokens.tokens;
  int64_t* counts = layer.counts[at].data();
  double* mass = layer.mass[at].data();
  for (int64_t token = 0; token < tokens.tokens; ++token) {
    for (int64_t i = token * tokens.slots; i < token * tokens.slots + tokens.top_k; ++i) {
      ++counts[tokens.expert_ids[i]];
      mass[tokens.expert_ids[i]] += static_cast<double>(tokens.expert_weights[i]);
    }
  }
}

void RoutingRecorder::keep(int64_t position, const RoutedTokens& tokens, RoutingPhase phase) {
  const int64_t ids = tokens.tokens * tokens.top_k;
  // From the first call that does not fit, all are dropped: a trace with holes would be taken for a whole one.
  if (dropped_ > 0 || static_cast<int64_t>(calls_.experts.size()) + ids > limit_) {
    ++dropped_;
    return;
  }
  calls_.layers.push_back(static_cast<int32_t>(position));
  calls_.phases.push_back(static_cast<uint8_t>(phase));
  calls_.requests.push_back(request_);
  for (int64_t token = 0; token < tokens.tokens; ++token) {
    const int64_t first = token * tokens.slots;
    calls_.experts.insert(calls_.experts.end(), tokens.expert_ids + first, tokens.expert_ids + first + tokens.top_k);
    calls_.weights.insert(calls_.weights.end(), tokens.expert_weights + first,
                          tokens.expert_weights + first + tokens.top_k);
  }
  calls_.offsets.push_back(static_cast<int64_t>(calls_.experts.size()));
}

void RoutingRecorder::label(int32_t phase, int32_t request) {
  check_phase(phase);
  const std::lock_guard<std::mutex> lock(mutex_);
  phase_ = phase;
  request_ = request;
}

void RoutingRecorder::set_default_phase(int32_t phase) {
  check_phase(phase);
  const std::lock_guard<std::mutex> lock(mutex_);
  default_phase_ = phase;
}

void RoutingRecorder::clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (RecordedLayer& layer : layers_) {
    RecordedLayer empty;
    empty.name = layer.name;
    layer = empty;
  }
  std::fill(positions_.begin(), positions_.end(), -1);
  execution_order_.clear();
  calls_ = {};
  dropped_ = 0;
}

std::shared_ptr<RoutingRecorder> open_recorder(const std::string& name, TraceMode mode, int64_t limit) {
  Recorders& all = recorders();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (auto each = all.by_name.begin(); each != all.by_name.end();) {
    each = each->second.expired() ? all.by_name.erase(each) : std::next(each);
  }
  std::weak_ptr<RoutingRecorder>& entry = all.by_name[name];
  std::shared_ptr<RoutingRecorder> recorder = entry.lock();
  if (!recorder) {
    recorder = std::make_shared<RoutingRecorder>(mode, limit);
    entry = recorder;
  }
  require(recorder->mode() == mode && recorder->limit() == limit, "trace '", name,
          "' is open with another mode or limit: give each session an onnx_moe.trace_name of its own");
  return recorder;
}

std::shared_ptr<RoutingRecorder> find_recorder(const std::string& name) {
  Recorders& all = recorders();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto entry = all.by_name.find(name);
  const std::shared_ptr<RoutingRecorder> recorder = entry == all.by_name.end() ? nullptr : entry->second.lock();
  require(recorder != nullptr, "no session records under the name '", name,
          "': make one with the session entry onnx_moe.trace = counters or full");
  return recorder;
}

}  // namespace onnx_moe
