// The GPU and its command queue.
#pragma once

#include "runtime/residency.h"

namespace onnx_moe::metal {

class Device {
 public:
  // Throws an Error when it cannot run the kernels: an older GPU than Apple's M1, or one of another make.
  explicit Device(Owned<MTL::Device> device);

  MTL::Device& metal() const { return *device_.get(); }
  MTL::CommandQueue& queue() const { return *queue_.get(); }
  const std::string& name() const { return name_; }
  std::string description() const;

  Residency& residency() { return residency_; }

  // Shared memory of its own. Throws an Error when there is none left.
  Owned<MTL::Buffer> allocate(size_t bytes) const;

  // The pages that hold [data, data + bytes), not copied; null where Metal refuses. `offset`: of data in the buffer.
  Owned<MTL::Buffer> wrap(const void* data, size_t bytes, size_t& offset) const;

 private:
  Owned<MTL::Device> device_;
  Owned<MTL::CommandQueue> queue_;
  std::string name_;
  Residency residency_;
};

}  // namespace onnx_moe::metal
