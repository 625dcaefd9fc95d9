#include "core/moe_block.h"

#include "core/error.h"

namespace onnx_moe {

void validate(const MoeBlock& block, int64_t routed_experts) {
  validate(block.router, routed_experts);
  validate(block.gate_up, block.activation);
  validate(block.down, Activation{});
  const int64_t experts = routed_experts + block.router.num_shared_experts;
  require(block.gate_up.num_experts == experts && block.down.num_experts == experts, "the router chooses among ",
          experts, " experts (", routed_experts, " routed, ", block.router.num_shared_experts,
          " shared), but gate_up_weights holds ", block.gate_up.num_experts, " and down_weights ",
          block.down.num_experts);
  const int64_t intermediate_size = block.activation.output_columns(block.gate_up.rows);
  require(block.down.columns == intermediate_size, "down_weights has K = ", block.down.columns,
          " columns, but gate_up_weights gives rows of ", intermediate_size);
}

void moe_block(const Kernel& kernel, const MoeBlock& block, const RouterInput& routing, RoutingSink* sink, void* y,
               Host& host) {
  const int64_t slots = block.router.slots();
  const int64_t assignments = routing.tokens * slots;
  if (assignments == 0) return;
  const Scratch<int32_t> expert_ids(host, assignments);
  const Scratch<float> expert_weights(host, assignments);
  RouterInput router = routing;
  router.expert_ids = expert_ids.data();
  router.expert_weights = expert_weights.data();
  route(kernel, block.router, router, host);
  if (sink) {
    sink->routed(
        {router.expert_ids, router.expert_weights, routing.tokens, slots, block.router.top_k, routing.num_experts});
  }

  const ExpertGroups groups(expert_ids.data(), routing.tokens, slots, block.gate_up.num_experts, host);
  const auto value_bytes = static_cast<int64_t>(element_size(routing.type));
  const Scratch<char> intermediate(host, assignments * block.down.columns * value_bytes);
  const std::unique_ptr<ExpertSource> source =
      block.experts ? block.experts->open(expert_ids.data(), assignments) : nullptr;
  ExpertGemm gate_up(kernel, block.activation, source ? block.gate_up.at(source->resident(0)) : block.gate_up,
                     {routing.type, block.precision, routing.tokens, slots, false, routing.hidden_states,
                      expert_ids.data(), nullptr, intermediate.data()},
                     groups, host);
  ExpertGemm down(kernel, Activation{}, source ? block.down.at(source->resident(1)) : block.down,
                  {routing.type, block.precision, routing.tokens, slots, true, intermediate.data(), expert_ids.data(),
                   expert_weights.data(), y},
                  groups, host);
  if (!source) {
    gate_up.compute_all();
    return down.compute_all();
  }
  for (ExpertSet set = source->next(); set.count > 0; set = source->next()) {
    gate_up.compute(set);
    down.compute(set);
  }
  down.combine();
}

}  // namespace onnx_moe
