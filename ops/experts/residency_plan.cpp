#include "experts/residency_plan.h"

#include <algorithm>

#include "core/error.h"
#include "experts/machine_memory.h"
#include "experts/speculation.h"
#include "experts/visit.h"

namespace onnx_moe {

namespace {

// Left to everything else when the budget is automatic.
constexpr int64_t kMemoryFloor = 1536LL * 1024 * 1024;
constexpr int64_t kLeastStaging = 1;
constexpr int64_t kSideShare = 16;  // one slot in so many is for staging, and one for reading ahead

template <typename Count>
int64_t sum(const std::vector<ExpertLayer>& layers, Count&& count) {
  int64_t total = 0;
  for (const ExpertLayer& layer : layers) total += count(layer);
  return total;
}

// Half of the memory: a second copy in the page cache would not fit beside the budget.
bool reads_directly(DirectIo direct_io, int64_t expert_bytes) {
  if (direct_io != DirectIo::kAuto) return direct_io == DirectIo::kOn;
  return expert_bytes > total_memory() / 2;
}

std::string entries_for_a_cache(const ResidencyOptions& options) {
  std::string entries;
  const auto add = [&](bool set, const char* entry) {
    if (set) entries += (entries.empty() ? "onnx_moe." : ", onnx_moe.") + std::string(entry);
  };
  add(!options.budget.automatic(), "cache_bytes");
  add(options.prefetch != PrefetchSignalKind::kNone, "prefetch");
  add(!options.counters.empty(), "counters");
  add(!options.save_counters.empty(), "save_counters");
  return entries;
}

}  // namespace

int64_t ExpertLayers::num_experts() const {
  return sum(layers, [](const ExpertLayer& layer) { return layer.num_experts; });
}

int64_t ExpertLayers::top_k() const {
  int64_t most = 1;
  for (const ExpertLayer& layer : layers) most = std::max(most, layer.top_k);
  return most;
}

int64_t ExpertLayers::cycle() const {
  return sum(layers, [](const ExpertLayer& layer) { return layer.top_k; });
}

int64_t ExpertLayers::bytes() const {
  return sum(layers, [](const ExpertLayer& layer) { return layer.num_experts * layer.expert_bytes(); });
}

namespace {

ResidencyPlan choose_mode(const ResidencyOptions& options, const ExpertLayers& experts, int64_t slot_bytes) {
  ResidencyPlan plan;
  plan.expert_bytes = experts.bytes();
  plan.mode = options.mode;
  plan.reason = "onnx_moe.residency asks for it";
  if (!experts.unmapped.empty()) {
    require(options.mode == ResidencyMode::kAuto || options.mode == ResidencyMode::kMapped,
            "session entry onnx_moe.residency is '", name_of(options.mode), "', but ", experts.unmapped,
            " is no part of a file that is mapped into memory: save the model with external data and run it on Linux, ",
            "or use mapped");
    plan.mode = ResidencyMode::kMapped;
    plan.reason = experts.unmapped + " is no part of a mapped file";
    return plan;
  }
  const int64_t free_bytes = std::max<int64_t>(0, available_memory() - kMemoryFloor);
  plan.budget_bytes = options.budget.resolve(experts.num_experts() * slot_bytes, free_bytes);
  plan.direct_io = reads_directly(options.direct_io, plan.expert_bytes);
  if (plan.mode != ResidencyMode::kAuto) return plan;
  const bool fits = plan.budget_bytes >= plan.expert_bytes;
  plan.mode = fits ? ResidencyMode::kMapped : ResidencyMode::kPool;
  plan.reason = "the experts' " + in_words(plan.expert_bytes) + (fits ? " fit into " : " do not fit into ") +
                (options.budget.automatic() ? "70 % of the free memory, " + in_words(free_bytes)
                                            : "onnx_moe.cache_bytes, " + in_words(plan.budget_bytes));
  return plan;
}

}  // namespace

ResidencyPlan make_plan(const ResidencyOptions& options, const ExpertLayers& experts, int64_t slot_bytes) {
  ResidencyPlan plan = choose_mode(options, experts, slot_bytes);
  if (plan.mode == ResidencyMode::kMapped) plan.unused = entries_for_a_cache(options);
  return plan;
}

int64_t cycle_bytes(int64_t slot_bytes, const ExpertLayers& experts, bool prefetches) {
  return (experts.cycle() + kLeastStaging + (prefetches ? Speculation::kMostReads : 0)) * slot_bytes;
}

SlotCounts divide_budget(int64_t budget_bytes, int64_t slot_bytes, const ExpertLayers& experts, bool prefetches) {
  const int64_t slots = budget_bytes / slot_bytes;
  const int64_t needed = cycle_bytes(slot_bytes, experts, prefetches);
  const auto num_layers = static_cast<int64_t>(experts.layers.size());
  if (slots >= experts.num_experts()) {
    return {experts.num_experts(), 0, experts.num_experts() / num_layers, 0, VisitPlanner::kNoBypass};
  }
  require(budget_bytes >= needed, "the expert cache has a budget of ", budget_bytes, " bytes (", in_words(budget_bytes),
          "), but a token uses ", experts.cycle(), " experts on its way through ", num_layers,
          " layers: set onnx_moe.cache_bytes to at least ", needed, " (", in_words(needed), ")");
  const int64_t least_speculative = prefetches ? Speculation::kMostReads : 0;
  int64_t spare = slots - experts.cycle() - least_speculative;
  const int64_t staging = std::min(std::clamp(slots / kSideShare, kLeastStaging, kMostStaging), spare);
  spare += least_speculative - staging;
  const int64_t speculative =
      prefetches ? std::min(std::clamp(slots / kSideShare, least_speculative, kMostSpeculative), spare) : 0;
  const int64_t capacity = slots - staging - speculative;
  const int64_t fair = capacity / num_layers;
  const int64_t top_k = experts.top_k();
  const int64_t layer_floor = 2 * top_k <= fair ? 2 * top_k : std::min(top_k, fair);
  return {capacity, staging, layer_floor, speculative, std::max<int64_t>(fair, 1)};
}

}  // namespace onnx_moe
