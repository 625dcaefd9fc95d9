#include "operators/routing_trace.h"

#include <limits>

#include "operators/session_entry.h"

namespace onnx_moe {

namespace {

constexpr int64_t kDefaultLimit = 33554432;  // with weights 256 MiB

int64_t read_limit(const ort::KernelInfo& info) {
  constexpr const char* kEntry = "onnx_moe.trace_limit";
  const std::optional<std::string> text = info.config_entry(kEntry);
  if (!text) return kDefaultLimit;
  return parse_count(kEntry, *text, std::numeric_limits<int64_t>::max(), "use a number of expert ids, at least 1");
}

}  // namespace

RoutingTraceEntry::RoutingTraceEntry(const ort::KernelInfo& info) {
  const std::string mode = info.config_entry("onnx_moe.trace").value_or("off");
  require(mode == "off" || mode == "counters" || mode == "full", "session entry onnx_moe.trace is '", mode,
          "': use off, counters or full");
  if (mode == "off") return;
  recorder_ = open_recorder(info.config_entry("onnx_moe.trace_name").value_or("default"),
                            mode == "full" ? TraceMode::kFull : TraceMode::kCounters, read_limit(info));
  layer_ = recorder_->add_layer(info.node_name());
}

RoutingTraceEntry::Call::Call(const RoutingTraceEntry& entry, const ort::Dimensions& hidden_states)
    : entry_(entry), phase_(RoutingPhase::kPrefill) {
  const size_t rank = hidden_states.size();
  if (rank < 2 || hidden_states[rank - 2] == 1) phase_ = RoutingPhase::kDecode;
}

}  // namespace onnx_moe
