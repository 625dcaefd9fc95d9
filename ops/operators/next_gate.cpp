#include "operators/next_gate.h"

#include <algorithm>

#include "kernels/registry.h"

namespace onnx_moe {

namespace {

// A prefill reads so much that guesses would be in its way.
constexpr int64_t kMostTokens = 8;

}  // namespace

NextGate::NextGate(const ort::KernelInfo& info, size_t input, int64_t top_k)
    : engine_(session_engine(info)), input_(input), top_k_(top_k) {
  first_layer_ = engine_->add_router(info.input_shape(input).has_value());
}

void NextGate::predict(ort::KernelContext& context, const RouterInput& routing) const {
  if (routing.tokens == 0 || routing.tokens > kMostTokens || !engine_->asks_next_gate()) return;
  const std::vector<int32_t> chosen = choose(context, routing);
  engine_->next_gate_chose(first_layer_, chosen.data(), static_cast<int64_t>(chosen.size()));
}

// By rank: all tokens' first choices before their second ones.
std::vector<int32_t> NextGate::choose(ort::KernelContext& context, const RouterInput& routing) const {
  const std::optional<ort::ConstTensor> gate = context.input(input_);
  if (!gate) return {};
  RouterAttributes attributes;
  attributes.scoring = Scoring::kSoftmaxAfterTopK;
  attributes.top_k = std::min(Speculation::kWiden * top_k_, gate->dimensions()[0]);
  const Scratch<int32_t> ids(context, routing.tokens * attributes.top_k);
  const Scratch<float> weights(context, routing.tokens * attributes.top_k);
  RouterInput next = routing;
  next.gate_type = static_cast<ElementType>(gate->type());
  next.gate_weight = gate->data();
  next.gate_bias = nullptr;
  next.correction_bias = nullptr;
  next.num_experts = gate->dimensions()[0];
  next.expert_ids = ids.data();
  next.expert_weights = weights.data();
  next.router_logits = nullptr;
  route(current_kernel(), attributes, next, context);
  std::vector<int32_t> chosen;
  for (int64_t rank = 0; rank < attributes.top_k; ++rank) {
    for (int64_t token = 0; token < routing.tokens; ++token) {
      const int32_t expert = ids.data()[token * attributes.top_k + rank];
      if (std::find(chosen.begin(), chosen.end(), expert) == chosen.end()) chosen.push_back(expert);
    }
  }
  return chosen;
}

}  // namespace onnx_moe
