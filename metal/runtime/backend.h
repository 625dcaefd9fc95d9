// The operators on a Metal device. Knows nothing of ONNX Runtime.
#pragma once

#include <memory>

#include "core/expert_gemm.h"

namespace onnx_moe::metal {

class Backend {
 public:
  // The default device's; null when there is none. Made once a process, when first asked for. Safe from any thread.
  static Backend* get();

  ~Backend();
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // As onnx_moe::expert_gemm at accuracy_level 0. Throws an Error with Metal's own message.
  void expert_gemm(const Activation& activation, const ExpertWeights& weights, const ExpertGemmInput& input);

 private:
  class Implementation;

  explicit Backend(std::unique_ptr<Implementation> implementation);

  std::unique_ptr<Implementation> implementation_;
};

}  // namespace onnx_moe::metal
