#include "runtime/device.h"

namespace onnx_moe::metal {

namespace {

// Metal wraps memory without copying it in whole pages of this size.
constexpr uintptr_t kPage = 16384;
// Kernels load codes this wide.
constexpr uintptr_t kAlignment = 16;

bool is_at_least_macos(NS::Integer major) {
  return NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({major, 0, 0});
}

}  // namespace

Device::Device(Owned<MTL::Device> device)
    : device_(std::move(device)),
      queue_(NS::TransferPtr(device_->newCommandQueue())),
      name_(device_->name()->utf8String()),
      has_residency_sets_(is_at_least_macos(15)) {
  require(queue_.get() != nullptr, "Metal: the device gives no command queue");
}

std::string Device::description() const {
  const AutoreleaseScope scope;
  return name_ + ", macOS " + NS::ProcessInfo::processInfo()->operatingSystemVersionString()->utf8String();
}

Owned<MTL::Buffer> Device::allocate(size_t bytes) const {
  auto buffer = NS::TransferPtr(device_->newBuffer(bytes, MTL::ResourceStorageModeShared));
  require(buffer.get() != nullptr, "Metal: no memory for a buffer of ", bytes, " bytes");
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
