// A whole MoE block without ONNX Runtime: router, gate and up projection, down projection, combine.
#pragma once

#include "core/expert_gemm.h"
#include "core/router.h"
#include "core/routing_sink.h"

namespace onnx_moe {

struct MoeBlock {
  const RouterAttributes& router;
  const Activation& activation;  // of the gate and up projection
  Precision precision;
  ExpertWeights gate_up;
  ExpertWeights down;
  ExpertProvider* experts = nullptr;  // where the weights are when they are not where both projections have them
};

// Throws an Error unless both projections and the router fit together.
void validate(const MoeBlock& block, int64_t routed_experts);

// `routing` is the router's input; its outputs are this call's scratch, so it leaves them null. y: [tokens, M] in the
// type of the hidden states. The same bytes as the router and both projections one after the other. `sink` (may be
// null) learns what the router chose.
void moe_block(const Kernel& kernel, const MoeBlock& block, const RouterInput& routing, RoutingSink* sink, void* y,
               Host& host);

}  // namespace onnx_moe
