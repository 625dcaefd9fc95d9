// The GPU and its command queue.
#pragma once

#include "runtime/objects.h"

namespace onnx_moe::metal {

class Device {
 public:
  explicit Device(Owned<MTL::Device> device);

  MTL::Device& metal() const { return *device_.get(); }
  MTL::CommandQueue& queue() const { return *queue_.get(); }
  const std::string& name() const { return name_; }
  std::string description() const;

  // Residency sets came with macOS 15.
  bool has_residency_sets() const { return has_residency_sets_; }

  // Shared memory of its own. Throws an Error when there is none left.
  Owned<MTL::Buffer> allocate(size_t bytes) const;

  // The pages that hold [data, data + bytes), not copied; null where Metal refuses. `offset`: of data in the buffer.
  Owned<MTL::Buffer> wrap(const void* data, size_t bytes, size_t& offset) const;

 private:
  Owned<MTL::Device> device_;
  Owned<MTL::CommandQueue> queue_;
  std::string name_;
  bool has_residency_sets_;
};

}  // namespace onnx_moe::metal
