#include "runtime/device.h"

namespace onnx_moe::metal {

namespace {

// Metal wraps memory without copying it in whole pages of this size.
constexpr uintptr_t kPage = 16384;
// Kernels load codes this wide.
constexpr uintptr_t kAlignment = 16;

Owned<MTL::CommandQueue> make_queue(MTL::Device& device) {
  // Simdgroups of 32 threads, their matrices and their reductions begin there.
  require(device.supportsFamily(MTL::GPUFamilyApple7), "Metal: ", device.name()->utf8String(),
          " is no GPU of Apple's, or one before the M1, and has no simdgroup matrices");
  auto queue = NS::TransferPtr(device.newCommandQueue());
  require(queue.get() != nullptr, "Metal: ", device.name()->utf8String(), " gives no command queue");
  return queue;
}

}  // namespace

Device::Device(Owned<MTL::Device> device)
    : device_(std::move(device)),
      queue_(make_queue(*device_.get())),
      name_(device_->name()->utf8String()),
      residency_(*device_.get(), *queue_.get()) {}

std::string Device::description() const {
  const AutoreleaseScope scope;
  return name_ + ", macOS " + NS::ProcessInfo::processInfo()->operatingSystemVersionString()->utf8String();
}

Owned<MTL::Buffer> Device::allocate(size_t bytes) const {
  auto buffer = NS::TransferPtr(device_->newBuffer(bytes, MTL::ResourceStorageModeShared));
  require(buffer.get() != nullptr, "Metal: ", name_, " gives no buffer of ", bytes, " bytes; its longest has ",
          device_->maxBufferLength());
  return buffer;
}

Owned<MTL::Buffer> Device::wrap(const void* data, size_t bytes, size_t& offset) const {
  const auto address = reinterpret_cast<uintptr_t>(data);
  if (address % kAlignment != 0) return {};
  const uintptr_t first = address / kPage * kPage;
  const uintptr_t end = (address + bytes + kPage - 1) / kPage * kPage;
  offset = address - first;
  return NS::TransferPtr(
      device_->newBuffer(reinterpret_cast<const void*>(first), end - first, MTL::ResourceStorageModeShared, nullptr));
}

}  // namespace onnx_moe::metal
