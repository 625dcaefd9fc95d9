// What the next layer's router would choose of this one's hidden states: a prediction for reading experts ahead. It
// changes no output.
#pragma once

#include <memory>
#include <vector>

#include "core/router.h"
#include "operators/residency.h"

namespace onnx_moe {

class NextGate {
 public:
  NextGate() = default;
  // input: where the node has next_gate_weight; top_k: experts of a token. Before the node's own experts are added.
  NextGate(const ort::KernelInfo& info, size_t input, int64_t top_k);

  // Nothing unless the session asks for it. `routing` is the router's own input.
  void predict(ort::KernelContext& context, const RouterInput& routing) const;

 private:
  std::vector<int32_t> choose(ort::KernelContext& context, const RouterInput& routing) const;

  std::shared_ptr<ResidencyEngine> engine_;
  size_t input_ = 0;
  int64_t top_k_ = 1;
  int64_t first_layer_ = 0;
};

}  // namespace onnx_moe
