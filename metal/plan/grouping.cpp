#include <algorithm>

#include "plan/planner.h"
#include "plan/regimes.h"

namespace onnx_moe::metal {

Argument Planner::add_scratch(ScratchMemory memory) {
  plan_.scratch.push_back(memory);
  return Scratch{plan_.scratch.size() - 1};
}

GroupedAssignments Planner::group(Argument expert_ids, int64_t assignments, int64_t num_experts, int64_t tile_rows,
                                  std::optional<Argument> counts) {
  // An expert fills whole tiles but for its last: no more tiles than this can occur.
  const int64_t most_tiles = std::min(assignments, assignments / tile_rows + num_experts);
  const Argument offsets = scratch(num_experts * 4);
  const GroupedAssignments groups{scratch(assignments * 4), scratch(most_tiles * 12), scratch(4), most_tiles};
  const Bytes sizes =
      bytes_of(GroupingArguments{static_cast<uint32_t>(assignments), static_cast<uint32_t>(num_experts)});
  const auto add = [&](const char* kernel, std::vector<Argument> arguments, int64_t threadgroups, int64_t simdgroups) {
    arguments.insert(arguments.begin(), sizes);
    plan_.launches.push_back({"grouping",
                              kernel,
                              ElementType::kFloat,
                              {static_cast<uint32_t>(tile_rows)},
                              std::move(arguments),
                              {threadgroups, 1},
                              simdgroups * SIMD_WIDTH});
  };
  const int64_t threadgroups = divide_up(num_experts, kGroupingSimdgroups);
  if (!counts) {
    counts = scratch(num_experts * 4);
    add("count_assignments", {expert_ids, *counts}, threadgroups, kGroupingSimdgroups);
  }
  add("plan_tiles", {*counts, offsets, groups.tiles, groups.tile_count}, 1, 1);
  add("scatter_assignments", {expert_ids, offsets, groups.order}, threadgroups, kGroupingSimdgroups);
  return groups;
}

Plan plan_grouping(int64_t assignments, int64_t num_experts, int64_t tile_rows) {
  Planner planner;
  planner.group(Tensor::kExpertIds, assignments, num_experts, tile_rows);
  return planner.finish();
}

}  // namespace onnx_moe::metal
