#include "plan/planner.h"
#include "plan/regimes.h"

namespace onnx_moe::metal {

std::string unsupported(const RouterAttributes& router, int64_t num_experts) {
  const auto limit = [](const char* does, uint32_t most, const char* what, int64_t count) {
    return "the Metal router " + (does + (" at most " + std::to_string(most)) + " " + what) + ", not " +
           std::to_string(count);
  };
  if (num_experts > ROUTER_EXPERTS) return limit("chooses among", ROUTER_EXPERTS, "experts", num_experts);
  if (router.top_k > ROUTER_SLOTS) return limit("chooses", ROUTER_SLOTS, "experts", router.top_k);
  if (router.num_shared_experts > ROUTER_SLOTS) {
    return limit("appends", ROUTER_SLOTS, "shared experts", router.num_shared_experts);
  }
  return "";
}

void Planner::route(const RouterAttributes& attributes, const RouterInput& input, const RouterOutputs& outputs) {
  const RouterArguments arguments{static_cast<uint32_t>(input.tokens),
                                  static_cast<uint32_t>(input.hidden_size),
                                  static_cast<uint32_t>(input.num_experts),
                                  static_cast<uint32_t>(attributes.top_k),
                                  static_cast<uint32_t>(attributes.num_groups),
                                  static_cast<uint32_t>(attributes.top_k_groups),
                                  static_cast<uint32_t>(attributes.num_shared_experts),
                                  attributes.norm_epsilon,
                                  attributes.norm_min,
                                  attributes.scaling_factor};
  const auto optional = [](const void* given, Tensor tensor) { return Argument{given ? tensor : Tensor::kNone}; };
  const auto* none = std::get_if<Tensor>(&outputs.logits);
  plan_.launches.push_back(
      {"router",
       "router",
       input.type,
       {static_cast<uint32_t>(attributes.scoring), attributes.normalize,
        attributes.group_scoring == GroupScoring::kTop2Sum, kind_of(input.gate_weight != nullptr, input.gate_type),
        kind_of(input.gate_bias != nullptr, input.bias_type), input.correction_bias != nullptr,
        !none || *none != Tensor::kNone, outputs.counts.has_value()},
       {bytes_of(arguments), Tensor::kX, optional(input.gate_weight, Tensor::kGateWeight),
        optional(input.gate_bias, Tensor::kGateBias), optional(input.correction_bias, Tensor::kCorrectionBias),
        outputs.expert_ids, outputs.expert_weights, outputs.logits, outputs.counts.value_or(Tensor::kNone)},
       {input.tokens, 1},
       kRouterThreads});
}

Plan plan_router(const RouterAttributes& attributes, const RouterInput& input) {
  Planner planner;
  planner.route(attributes, input,
                {Tensor::kExpertIds, Tensor::kExpertWeights,
                 input.router_logits ? Tensor::kRouterLogits : Tensor::kNone, std::nullopt});
  return planner.finish();
}

}  // namespace onnx_moe::metal
