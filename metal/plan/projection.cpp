#include <algorithm>

#include "plan/planner.h"
#include "plan/regimes.h"

namespace onnx_moe::metal {

namespace {

const RegimeSizes& sizes_of(Regime regime) {
  return *std::find_if(std::begin(kRegimes), std::end(kRegimes),
                       [&](const RegimeSizes& sizes) { return sizes.regime == regime; });
}

Bytes gemm_arguments(const ProjectionStep& step) {
  return bytes_of(
      ExpertGemmArguments{static_cast<uint32_t>(step.assignments()), static_cast<uint32_t>(step.slots),
                          static_cast<uint32_t>(step.weights.num_experts), static_cast<uint32_t>(step.weights.rows),
                          static_cast<uint32_t>(step.weights.columns), static_cast<uint32_t>(step.output_columns()),
                          step.x_per_slot ? 1u : 0u, static_cast<uint32_t>(step.weights.global_scales),
                          step.activation.alpha, step.activation.beta, step.activation.limit});
}

// In the order of their numbers in fp4.h and projection.h.
std::vector<uint32_t> constants_of(const ProjectionStep& step) {
  const ExpertWeights& weights = step.weights;
  return {static_cast<uint32_t>(weights.format.format),
          static_cast<uint32_t>(weights.format.block_size),
          static_cast<uint32_t>(step.activation.function),
          step.activation.gated,
          step.activation.interleaved,
          weights.global_scale != nullptr,
          kind_of(weights.bias != nullptr, weights.bias_type),
          step.expert_weights.has_value()};
}

Launch projection_launch(Regime regime, const ProjectionStep& step, std::vector<Argument> arguments, int64_t tiles) {
  const RegimeSizes& sizes = sizes_of(regime);
  const int64_t columns = sizes.tile_columns / (step.activation.gated ? 2 : 1);
  arguments.insert(arguments.begin(), {Argument{gemm_arguments(step)}, step.x});
  return {sizes.file,         sizes.kernel,         step.type,
          constants_of(step), std::move(arguments), {divide_up(step.output_columns(), columns), tiles},
          kProjectionThreads};
}

std::array<Argument, 4> tensors_of(const ExpertWeights& weights, std::array<Tensor, 4> tensors) {
  if (!weights.global_scale) tensors[2] = Tensor::kNone;
  if (!weights.bias) tensors[3] = Tensor::kNone;
  return {tensors[0], tensors[1], tensors[2], tensors[3]};
}

void project(Planner& planner, Regime regime, const ProjectionStep& step) {
  if (regime == Regime::kDecode) return planner.project_ungrouped(step);
  planner.project_grouped(
      regime, step, planner.group(step.expert_ids, step.assignments(), step.weights.num_experts, tile_rows(regime)));
}

}  // namespace

Regime choose_regime(int64_t tokens, int64_t slots, int64_t num_experts) {
  if (tokens == 1) return Regime::kDecode;
  const double average = static_cast<double>(tokens * slots) / static_cast<double>(num_experts);
  Regime chosen = Regime::kDecode;
  for (const RegimeSizes& sizes : kRegimes) {
    if (average >= sizes.from) chosen = sizes.regime;
  }
  return chosen;
}

int64_t tile_rows(Regime regime) { return sizes_of(regime).tile_rows; }

void Planner::project_ungrouped(const ProjectionStep& step) {
  std::vector<Argument> arguments{step.expert_ids};
  arguments.insert(arguments.end(), step.tensors.begin(), step.tensors.end());
  if (!step.expert_weights) {
    arguments.push_back(step.y);
    plan_.launches.push_back(projection_launch(Regime::kDecode, step, std::move(arguments), step.assignments()));
  } else if (step.slots > COMBINED_SLOTS) {
    const Argument slots = scratch(step.assignments() * step.output_columns() * 4);
    arguments.push_back(slots);
    plan_.launches.push_back(projection_launch(Regime::kDecode, step, std::move(arguments), step.assignments()));
    combine(step, slots);
  } else {
    arguments.push_back(*step.expert_weights);
    arguments.push_back(step.y);
    Launch launch = projection_launch(Regime::kDecode, step, std::move(arguments), step.tokens);
    launch.file = "decode_combined";
    launch.kernel = "expert_decode_combined";
    launch.threadgroups[0] = divide_up(step.output_columns(), int64_t{VECTOR_ROWS} / (step.activation.gated ? 2 : 1));
    launch.threads = SIMD_WIDTH * std::min(step.slots, kCombinedSimdgroups);
    plan_.launches.push_back(std::move(launch));
  }
}

void Planner::project_grouped(Regime regime, const ProjectionStep& step, const GroupedAssignments& groups) {
  const Argument y = step.expert_weights ? scratch(step.assignments() * step.output_columns() * 4) : step.y;
  std::vector<Argument> arguments{groups.order, groups.tiles, groups.tile_count};
  arguments.insert(arguments.end(), step.tensors.begin(), step.tensors.end());
  arguments.push_back(y);
  plan_.launches.push_back(projection_launch(regime, step, std::move(arguments), groups.most_tiles));
  if (step.expert_weights) combine(step, y);
}

void Planner::combine(const ProjectionStep& step, Argument slots) {
  const CombineArguments arguments{static_cast<uint32_t>(step.tokens), static_cast<uint32_t>(step.slots),
                                   static_cast<uint32_t>(step.output_columns())};
  plan_.launches.push_back({"combine",
                            "combine",
                            step.type,
                            {},
                            {bytes_of(arguments), slots, *step.expert_weights, step.y},
                            {divide_up(step.output_columns(), kCombineThreads), step.tokens},
                            kCombineThreads});
}

Plan plan_projection(const Activation& activation, const ExpertWeights& weights, const ExpertGemmInput& input,
                     std::optional<Regime> forced) {
  Planner planner;
  const ProjectionStep step{
      activation,
      weights,
      input.type,
      input.tokens,
      input.slots,
      input.x_per_slot,
      Tensor::kX,
      Tensor::kExpertIds,
      tensors_of(weights, {Tensor::kWeights, Tensor::kScales, Tensor::kGlobalScale, Tensor::kBias}),
      input.expert_weights ? std::optional<Argument>(Tensor::kExpertWeights) : std::nullopt,
      Tensor::kY};
  project(planner, forced.value_or(choose_regime(input.tokens, input.slots, weights.num_experts)), step);
  return planner.finish();
}

Plan plan_block(const MoeBlock& block, const RouterInput& input, std::optional<Regime> forced) {
  Planner planner;
  const int64_t slots = block.router.slots();
  const int64_t assignments = input.tokens * slots;
  const Argument ids = planner.scratch(assignments * 4);
  const Argument expert_weights = planner.scratch(assignments * 4);
  const Argument intermediate =
      planner.scratch(assignments * block.down.columns * static_cast<int64_t>(element_size(input.type)));
  const int64_t num_experts = block.gate_up.num_experts;
  const Regime regime = forced.value_or(choose_regime(input.tokens, slots, num_experts));
  RouterOutputs routed{ids, expert_weights, Tensor::kNone, std::nullopt};
  if (regime != Regime::kDecode) routed.counts = planner.zeroed_scratch(num_experts * 4);
  planner.route(block.router, input, routed);
  const ProjectionStep gate_up{
      block.activation,
      block.gate_up,
      input.type,
      input.tokens,
      slots,
      false,
      Tensor::kX,
      ids,
      tensors_of(block.gate_up, {Tensor::kWeights, Tensor::kScales, Tensor::kGlobalScale, Tensor::kBias}),
      std::nullopt,
      intermediate};
  const Activation none{};
  const ProjectionStep down{
      none,
      block.down,
      input.type,
      input.tokens,
      slots,
      true,
      intermediate,
      ids,
      tensors_of(block.down, {Tensor::kDownWeights, Tensor::kDownScales, Tensor::kDownGlobalScale, Tensor::kDownBias}),
      expert_weights,
      Tensor::kY};
  if (regime == Regime::kDecode) {
    planner.project_ungrouped(gate_up);
    planner.project_ungrouped(down);
  } else {
    const GroupedAssignments groups = planner.group(ids, assignments, num_experts, tile_rows(regime), routed.counts);
    planner.project_grouped(regime, gate_up, groups);
    planner.project_grouped(regime, down, groups);
  }
  return planner.finish();
}

}  // namespace onnx_moe::metal
