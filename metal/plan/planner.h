// Builds plans: each function appends the launches of one step. The operators' plans share these steps.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/arguments.h"
#include "plan/plan.h"

namespace onnx_moe::metal {

template <typename T>
Bytes bytes_of(const T& value) {
  Bytes bytes{};
  static_assert(std::is_trivially_copyable_v<T> && sizeof value <= sizeof bytes.data);
  std::memcpy(bytes.data.data(), &value, sizeof value);
  bytes.size = sizeof value;
  return bytes;
}

// 0 absent, 1 float, 2 ELEMENT: how kernels are told of optional tensors.
inline uint32_t kind_of(bool present, ElementType type) { return !present ? 0 : type == ElementType::kFloat ? 1 : 2; }

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct RouterOutputs {
  Argument expert_ids;
  Argument expert_weights;
  Argument logits{Tensor::kNone};
  std::optional<Argument> counts;  // of assignments, by expert: zeroed scratch
};

// Assignments grouped by expert, and the tiles of at most tile_rows of one expert that are not empty.
struct GroupedAssignments {
  Argument order;
  Argument tiles;
  Argument tile_count;
  int64_t most_tiles;
};

// What a projection multiplies, and where its arguments come from.
struct ProjectionStep {
  const Activation& activation;
  const ExpertWeights& weights;
  ElementType type;
  int64_t tokens;
  int64_t slots;
  bool x_per_slot;
  Argument x;
  Argument expert_ids;
  std::array<Argument, 4> tensors;         // codes, scales, global scale, bias
  std::optional<Argument> expert_weights;  // present: combine
  Argument y;

  int64_t assignments() const { return tokens * slots; }
  int64_t output_columns() const { return activation.output_columns(weights.rows); }
};

class Planner {
 public:
  Argument scratch(int64_t bytes) { return add_scratch({bytes, false}); }
  Argument zeroed_scratch(int64_t bytes) { return add_scratch({bytes, true}); }
  void route(const RouterAttributes& attributes, const RouterInput& input, const RouterOutputs& outputs);
  // `counts` of the router that made the ids; without them, a launch counts.
  GroupedAssignments group(Argument expert_ids, int64_t assignments, int64_t num_experts, int64_t tile_rows,
                           std::optional<Argument> counts = std::nullopt);
  // Decode, with the combine where there is one.
  void project_ungrouped(const ProjectionStep& step);
  void project_grouped(Regime regime, const ProjectionStep& step, const GroupedAssignments& groups);
  Plan finish() { return std::move(plan_); }

 private:
  Argument add_scratch(ScratchMemory memory);
  void combine(const ProjectionStep& step, Argument slots);

  Plan plan_;
};

Regime choose_regime(int64_t tokens, int64_t slots, int64_t num_experts);
int64_t tile_rows(Regime regime);

}  // namespace onnx_moe::metal
