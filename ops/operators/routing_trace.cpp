#include "operators/routing_trace.h"

#include <cstdlib>

namespace onnx_moe {

namespace {

constexpr const char* kDefaultLimit = "33554432";  // with weights 256 MiB

int64_t read_limit(const ort::KernelInfo& info) {
  const std::string text = info.config_entry("onnx_moe.trace_limit").value_or(kDefaultLimit);
  char* end = nullptr;
  const long long limit = std::strtoll(text.c_str(), &end, 10);
  require(!text.empty() && *end == '\0' && limit >= 1, "session entry onnx_moe.trace_limit is '", text,
          "': use a number of expert ids, at least 1");
  return limit;
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
