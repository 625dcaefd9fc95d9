// A node's experts under the session's entries onnx_moe.residency (auto, mapped, pagecache or pool),
// onnx_moe.cache_bytes, onnx_moe.cache_policy, onnx_moe.direct_io, onnx_moe.io_threads, onnx_moe.prefetch,
// onnx_moe.prefetch_precision, onnx_moe.counters, onnx_moe.save_counters, onnx_moe.pinned and onnx_moe.session (a name
// to ask for).
#pragma once

#include <memory>
#include <vector>

#include "core/expert_source.h"
#include "experts/residency_registry.h"
#include "operators/projection.h"

namespace onnx_moe {

// The engine of the node's session. Throws an Error for entries that are none of the above, or that would do nothing.
std::shared_ptr<ResidencyEngine> session_engine(const ort::KernelInfo& info);

class ExpertResidency final : public ExpertProvider {
 public:
  ExpertResidency() = default;
  // top_k: experts of a token, kUnknown where the graph leaves it open. Throws as session_engine() does.
  ExpertResidency(const ort::KernelInfo& info, const std::vector<ProjectionInputs>& projections, int64_t top_k);

  std::unique_ptr<ExpertSource> open(const int32_t* expert_ids, int64_t count) override;
  // Why no device can compute with the experts, or empty: it takes them where the graph has them.
  std::string unsupported();

 private:
  std::shared_ptr<ResidencyEngine> engine_;
  int64_t layer_ = 0;
};

}  // namespace onnx_moe
