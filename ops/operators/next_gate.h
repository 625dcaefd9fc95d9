// What the next layer's router would choose of this one's hidden states: a prediction for reading experts ahead. It
// changes no output.
#pragma once

#include <memory>
#include <vector>

#include "core/router.h"
#include "operators/residency.h"

namespace onnx_moe {

// Where a node has its router's inputs.
struct RouterInputIndices {
  size_t gate_weight;
  size_t gate_bias;
  size_t correction_bias;
  size_t next_gate_weight;
};

class NextGate {
 public:
  NextGate() = default;
  // Tells the session's engine of the node's router. Before the node's own experts are added.
  NextGate(const ort::KernelInfo& info, const RouterInputIndices& inputs, const RouterAttributes& attributes);

  // Nothing unless the session asks for it. `routing` is the router's own input.
  void predict(ort::KernelContext& context, const RouterInput& routing) const;

 private:
  // By rank: all tokens' first choices before their second ones.
  std::vector<int32_t> choose(ort::KernelContext& context, const RouterInput& routing, const RouterChoice& next) const;

  std::shared_ptr<ResidencyEngine> engine_;
  size_t input_ = 0;
  int64_t first_layer_ = 0;
};

}  // namespace onnx_moe
