// Who wants to know what a router chose.
#pragma once

#include <cstdint>

namespace onnx_moe {

struct RoutedTokens {
  const int32_t* expert_ids;    // [tokens, slots]; the first top_k of a row are routed, the rest are shared experts
  const float* expert_weights;  // likewise
  int64_t tokens;
  int64_t slots;
  int64_t top_k;
  int64_t num_experts;  // routed
};

class RoutingSink {
 public:
  virtual ~RoutingSink() = default;
  virtual void routed(const RoutedTokens& tokens) = 0;
};

}  // namespace onnx_moe
