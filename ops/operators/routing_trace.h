// The recording of one node: session entries onnx_moe.trace (off, counters or full), onnx_moe.trace_name (sessions of
// one name share a recording) and onnx_moe.trace_limit (expert ids that full recording keeps).
#pragma once

#include <memory>
#include <string>

#include "experts/routing_recorder.h"
#include "ort/api.h"

namespace onnx_moe {

class RoutingTraceEntry {
 public:
  // Throws an Error for entries that are none of the above.
  explicit RoutingTraceEntry(const ort::KernelInfo& info);

  // One call of the node, on hidden states of shape [..., sequence, H]: it decodes when the sequence is 1 long.
  class Call final : public RoutingSink {
   public:
    Call(const RoutingTraceEntry& entry, const ort::Dimensions& hidden_states);
    void routed(const RoutedTokens& tokens) override { entry_.recorder_->record(entry_.layer_, tokens, phase_); }

   private:
    const RoutingTraceEntry& entry_;
    RoutingPhase phase_;
  };

  bool records() const { return recorder_ != nullptr; }

 private:
  std::shared_ptr<RoutingRecorder> recorder_;  // null when onnx_moe.trace is off
  int64_t layer_ = 0;
};

}  // namespace onnx_moe
