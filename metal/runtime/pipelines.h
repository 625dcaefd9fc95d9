// Kernels as Xcode compiled them, or else compiled at run time from their text: the plugin carries either. Kept by
// kernel, element type and constants.
#pragma once

#include <map>
#include <mutex>

#include "plan/plan.h"
#include "runtime/device.h"

namespace onnx_moe::metal {

class Pipelines {
 public:
  explicit Pipelines(const Device& device) : device_(device) {}

  // Safe from any thread. Throws an Error with the compiler's message.
  MTL::ComputePipelineState* get(const Launch& launch);

 private:
  Owned<MTL::ComputePipelineState> compile(const Launch& launch);
  MTL::Library* library(const Launch& launch);

  const Device& device_;
  std::mutex mutex_;
  std::map<std::string, Owned<MTL::Library>> libraries_;
  std::map<std::string, Owned<MTL::ComputePipelineState>> pipelines_;
};

}  // namespace onnx_moe::metal
