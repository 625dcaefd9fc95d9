// The C API of how a budget becomes slots of the expert cache.
#include "c_api_guard.h"
#include "core/error.h"
#include "experts/residency_plan.h"
#include "onnx_moe.h"

using onnx_moe::guarded;
using onnx_moe::require;

int onnx_moe_divide_slots(int64_t num_layers, int64_t num_experts, int64_t top_k, int64_t slots, int32_t prefetches,
                          onnx_moe_slot_counts* out) {
  return guarded([&] {
    require(num_layers >= 1 && num_experts >= 1 && top_k >= 1 && top_k <= num_experts, "a cache for ", num_layers,
            " layers, ", num_experts, " experts and top-", top_k,
            " cannot be: all must be at least 1, and top_k at most the number of experts");
    onnx_moe::ExpertLayers experts;
    experts.layers.resize(static_cast<size_t>(num_layers), {"", num_experts, top_k, {}});
    // With all experts in memory there is nothing to divide.
    const int64_t cycle = onnx_moe::cycle_bytes(1, experts, prefetches != 0);
    const int64_t least = cycle < experts.num_experts() ? cycle : experts.num_experts();
    *out = {least, 0, 0, 0, 0};
    if (slots < least) return;
    const onnx_moe::SlotCounts counts = onnx_moe::divide_budget(slots, 1, experts, prefetches != 0);
    *out = {least, counts.capacity, counts.layer_floor, counts.share, counts.staging};
  });
}
