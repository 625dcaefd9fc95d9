#include "operators/next_gate.h"

#include <algorithm>

#include "kernels/registry.h"

namespace onnx_moe {

namespace {

// A prefill reads so much that guesses would be in its way.
constexpr int64_t kMostTokens = 8;

// Biases that the graph computes are left out: they are not known when another node predicts.
RouterChoice read_choice(const ort::KernelInfo& info, const RouterInputIndices& inputs,
                         const RouterAttributes& attributes) {
  RouterChoice choice{attributes};
  const std::optional<ort::Shape> gate = info.input_shape(inputs.gate_weight);
  if (gate && gate->rank() == 2) choice.num_experts = gate->dimensions[0];
  if (const std::optional<ort::ConstTensor> bias = info.constant_input(inputs.gate_bias)) {
    choice.gate_bias = bias->data();
    choice.bias_type = static_cast<ElementType>(bias->type());
  }
  if (const std::optional<ort::ConstTensor> bias = info.constant_input(inputs.correction_bias)) {
    choice.correction_bias = bias->as<float>();
  }
  return choice;
}

}  // namespace

NextGate::NextGate(const ort::KernelInfo& info, const RouterInputIndices& inputs, const RouterAttributes& attributes)
    : engine_(session_engine(info)), input_(inputs.next_gate_weight) {
  first_layer_ = engine_->add_router(read_choice(info, inputs, attributes), info.input_shape(input_).has_value());
}

void NextGate::predict(ort::KernelContext& context, const RouterInput& routing) const {
  if (routing.tokens == 0 || routing.tokens > kMostTokens || !engine_->asks_next_gate()) return;
  const RouterChoice* const next = engine_->next_choice(first_layer_);
  if (!next) return;
  const std::vector<int32_t> chosen = choose(context, routing, *next);
  engine_->next_gate_chose(first_layer_, chosen.data(), static_cast<int64_t>(chosen.size()));
}

std::vector<int32_t> NextGate::choose(ort::KernelContext& context, const RouterInput& routing,
                                      const RouterChoice& next) const {
  const std::optional<ort::ConstTensor> gate = context.input(input_);
  if (!gate) return {};
  const int64_t experts = gate->dimensions()[0];
  RouterAttributes attributes = next.attributes;
  attributes.top_k = std::min(Speculation::kWiden * attributes.top_k, experts);
  attributes.num_shared_experts = 0;
  const Scratch<int32_t> ids(context, routing.tokens * attributes.top_k);
  const Scratch<float> weights(context, routing.tokens * attributes.top_k);
  const bool is_its_gate = experts == next.num_experts;
  RouterInput input = routing;
  input.gate_type = static_cast<ElementType>(gate->type());
  input.gate_weight = gate->data();
  input.gate_bias = is_its_gate ? next.gate_bias : nullptr;
  input.bias_type = next.bias_type;
  input.correction_bias = is_its_gate ? next.correction_bias : nullptr;
  input.num_experts = experts;
  input.expert_ids = ids.data();
  input.expert_weights = weights.data();
  input.router_logits = nullptr;
  if (!is_its_gate) attributes.num_groups = attributes.top_k_groups = 1;
  route(current_kernel(), attributes, input, context);
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
