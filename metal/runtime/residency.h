// Keeps weights mapped for the GPU between calls: without, the first command buffer after some idle time waits for all
// of them. One residency set for the device, since a queue holds at most 32 and a model has more layers than that.
#pragma once

#include <mutex>
#include <vector>

#include "runtime/objects.h"

namespace onnx_moe::metal {

class Residency {
 public:
  // Residency sets came with macOS 15; before, nothing is kept.
  Residency(MTL::Device& device, MTL::CommandQueue& queue);

  // Empty when the buffers are kept, or there is nothing to keep them with; otherwise why not. Safe from any thread, as
  // release().
  std::string keep(const std::vector<Owned<MTL::Buffer>>& buffers);
  // Only of buffers that keep() kept.
  void release(const std::vector<Owned<MTL::Buffer>>& buffers);

 private:
  std::mutex mutex_;
  uint64_t limit_;  // what the device recommends to have resident
  uint64_t kept_ = 0;
  Owned<MTL::ResidencySet> set_;
  std::string reason_;  // why there is no set, where there should be one
};

}  // namespace onnx_moe::metal
