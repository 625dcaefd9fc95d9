// A node's constant tensors as Metal buffers: the pages of ONNX Runtime's mapping themselves, never a copy where they
// are aligned, and resident from macOS 15 on (without, the first run after idling waits some 250 ms for them).
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
  Weights(const Device& device, const std::vector<ConstantMemory>& constants);
  ~Weights() override;
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // Nothing (a null buffer) for memory that is not one of the constants.
  BufferSlice find(const void* data) const;

 private:
  void make_resident();

  const Device& device_;
  std::vector<Owned<MTL::Buffer>> buffers_;
  std::map<const void*, BufferSlice> slices_;
  Owned<MTL::ResidencySet> residency_;
};

}  // namespace onnx_moe::metal
