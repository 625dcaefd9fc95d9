// A node's constant tensors as Metal buffers: the pages that ONNX Runtime has them in, a copy where Metal does not take
// those, and kept resident from macOS 15 on.
#pragma once

#include <map>

#include "core/accelerator.h"
#include "runtime/device.h"

namespace onnx_moe::metal {

// A place in a buffer.
struct BufferSlice {
  MTL::Buffer* buffer = nullptr;
  size_t offset = 0;
};

class Weights final : public Accelerator::Constants {
 public:
  Weights(Device& device, const std::vector<ConstantMemory>& constants);
  ~Weights() override;
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  std::string remark() const override;

  // Nothing (a null buffer) for memory that is not one of the constants.
  BufferSlice find(const void* data) const;

 private:
  void take(const ConstantMemory& constant);

  Device& device_;
  std::vector<Owned<MTL::Buffer>> buffers_;
  std::map<const void*, BufferSlice> slices_;
  size_t copied_bytes_ = 0;
  bool is_resident_ = false;
  std::string not_resident_;  // why, where they should be
};

}  // namespace onnx_moe::metal
