// The C API over predictions of the experts that a layer is about to use.
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "c_api_guard.h"
#include "core/error.h"
#include "experts/cross_layer_table.h"
#include "experts/prefetch_signal.h"
#include "onnx_moe.h"

struct onnx_moe_routing_history {
  explicit onnx_moe_routing_history(int64_t window) : calls(window) {}

  mutable std::mutex mutex;
  onnx_moe::RoutingHistory calls;
};

struct onnx_moe_cross_layer_table {
  explicit onnx_moe_cross_layer_table(const onnx_moe::ExpertBank& of) : bank(of), table(of) {}

  onnx_moe::ExpertBank bank;
  mutable std::mutex mutex;
  onnx_moe::CrossLayerTable table;
};

namespace onnx_moe {

namespace {

using Lock = std::lock_guard<std::mutex>;

// Keeps a list for the thread that asked.
void give(std::vector<int32_t> experts, onnx_moe_experts* out) {
  thread_local std::vector<int32_t> ids;
  ids = std::move(experts);
  *out = {static_cast<int64_t>(ids.size()), ids.data(), nullptr};
}

void give(const std::vector<RoutingHistory::Frequency>& frequencies, onnx_moe_experts* out) {
  thread_local std::vector<int32_t> ids;
  thread_local std::vector<double> values;
  ids.clear();
  values.clear();
  for (const RoutingHistory::Frequency& each : frequencies) {
    ids.push_back(each.expert);
    values.push_back(each.value);
  }
  *out = {static_cast<int64_t>(ids.size()), ids.data(), values.data()};
}

std::vector<int32_t> predict(const onnx_moe_prediction& wanted, const RoutingHistory& history) {
  const std::vector<int32_t> current(wanted.current, wanted.current + wanted.num_current);
  switch (wanted.rule) {
    case ONNX_MOE_PREDICT_REPEAT:
      return predict_repeat(current, wanted.most);
    case ONNX_MOE_PREDICT_HISTORY:
      return predict_history(current, history, wanted.most, wanted.min_confidence);
    case ONNX_MOE_PREDICT_RECENCY:
      return predict_recency(current, history, wanted.most, wanted.decay);
    case ONNX_MOE_PREDICT_WEIGHTED:
      return predict_weighted(current, history, wanted.most, {wanted.weights, wanted.weights + history.size()});
    default:
      fail("prediction rule ", wanted.rule, " is unknown: use a value of onnx_moe_prediction_rule");
  }
}

void check_layer(const ExpertBank& bank, int64_t layer) {
  require(layer >= 0 && layer < bank.layers, "layer ", layer, " is out of range: layers are numbered 0 to ",
          bank.layers - 1);
}

}  // namespace

}  // namespace onnx_moe

using onnx_moe::guarded;
using onnx_moe::Lock;

int onnx_moe_routing_history_create(int64_t window, onnx_moe_routing_history** out) {
  return guarded([&] { *out = std::make_unique<onnx_moe_routing_history>(window).release(); });
}

void onnx_moe_routing_history_free(onnx_moe_routing_history* history) {
  std::unique_ptr<onnx_moe_routing_history>(history).reset();
}

int onnx_moe_routing_history_record(onnx_moe_routing_history* history, const int32_t* experts, int64_t count) {
  return guarded([&] {
    const Lock lock(history->mutex);
    history->calls.record(experts, count);
  });
}

int onnx_moe_routing_history_clear(onnx_moe_routing_history* history) {
  return guarded([&] {
    const Lock lock(history->mutex);
    history->calls.clear();
  });
}

int64_t onnx_moe_routing_history_size(const onnx_moe_routing_history* history) {
  const Lock lock(history->mutex);
  return history->calls.size();
}

int onnx_moe_routing_history_last(const onnx_moe_routing_history* history, onnx_moe_experts* out) {
  return guarded([&] {
    const Lock lock(history->mutex);
    onnx_moe::give(history->calls.last(), out);
  });
}

int onnx_moe_routing_history_frequencies(const onnx_moe_routing_history* history, double decay, onnx_moe_experts* out) {
  return guarded([&] {
    const Lock lock(history->mutex);
    onnx_moe::give(history->calls.frequencies(decay), out);
  });
}

int onnx_moe_predict_experts(const onnx_moe_prediction* prediction, onnx_moe_experts* out) {
  return guarded([&] {
    onnx_moe::require(prediction->most >= 0, prediction->most, " experts are to be predicted: it must be 0 or more");
    if (prediction->history == nullptr) {
      onnx_moe::give(onnx_moe::predict(*prediction, onnx_moe::RoutingHistory(1)), out);
      return;
    }
    const Lock lock(prediction->history->mutex);
    onnx_moe::give(onnx_moe::predict(*prediction, prediction->history->calls), out);
  });
}

int onnx_moe_cross_layer_table_create(int64_t num_layers, int64_t num_experts, onnx_moe_cross_layer_table** out) {
  return guarded([&] {
    onnx_moe::require(num_layers >= 1 && num_experts >= 1, "the table is for ", num_layers, " layers of ", num_experts,
                      " experts: both must be at least 1");
    *out = std::make_unique<onnx_moe_cross_layer_table>(onnx_moe::ExpertBank{num_layers, num_experts}).release();
  });
}

void onnx_moe_cross_layer_table_free(onnx_moe_cross_layer_table* table) {
  std::unique_ptr<onnx_moe_cross_layer_table>(table).reset();
}

int onnx_moe_cross_layer_table_routed(onnx_moe_cross_layer_table* table, int64_t layer, const int32_t* experts,
                                      int64_t count) {
  return guarded([&] {
    onnx_moe::check_layer(table->bank, layer);
    for (int64_t i = 0; i < count; ++i) {
      onnx_moe::require(experts[i] >= 0 && experts[i] < table->bank.experts, "expert ", experts[i], " of layer ", layer,
                        " is out of range: experts are numbered 0 to ", table->bank.experts - 1);
    }
    const Lock lock(table->mutex);
    table->table.routed({layer, experts, count});
  });
}

int onnx_moe_cross_layer_table_predict(const onnx_moe_cross_layer_table* table, int64_t layer, int64_t most,
                                       onnx_moe_experts* out) {
  return guarded([&] {
    onnx_moe::check_layer(table->bank, layer);
    std::vector<int32_t> experts;
    {
      const Lock lock(table->mutex);
      table->table.predict(layer, most, experts);
    }
    onnx_moe::give(std::move(experts), out);
  });
}
