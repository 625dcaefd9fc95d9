#include "runtime/weights.h"

#include <cstring>

namespace onnx_moe::metal {

Weights::Weights(const Device& device, const std::vector<ConstantMemory>& constants) : device_(device) {
  const AutoreleaseScope scope;
  for (const ConstantMemory& constant : constants) {
    const auto bytes = static_cast<size_t>(constant.bytes);
    size_t offset = 0;
    Owned<MTL::Buffer> buffer = device.wrap(constant.data, bytes, offset);
    if (!buffer) {
      buffer = device.allocate(bytes);
      std::memcpy(buffer->contents(), constant.data, bytes);
      offset = 0;
    }
    slices_[constant.data] = {buffer.get(), offset};
    buffers_.push_back(std::move(buffer));
  }
  if (device.has_residency_sets() && !buffers_.empty()) make_resident();
}

Weights::~Weights() {
  const AutoreleaseScope scope;
  if (residency_) device_.queue().removeResidencySet(residency_.get());
}

BufferSlice Weights::find(const void* data) const {
  const auto found = slices_.find(data);
  return found == slices_.end() ? BufferSlice{} : found->second;
}

void Weights::make_resident() {
  const auto descriptor = NS::TransferPtr(MTL::ResidencySetDescriptor::alloc()->init());
  NS::Error* error = nullptr;
  residency_ = NS::TransferPtr(device_.metal().newResidencySet(descriptor.get(), &error));
  require(residency_.get() != nullptr, "Metal gives no residency set: ", message(error));
  for (const Owned<MTL::Buffer>& buffer : buffers_) residency_->addAllocation(buffer.get());
  residency_->commit();
  device_.queue().addResidencySet(residency_.get());
}

}  // namespace onnx_moe::metal
