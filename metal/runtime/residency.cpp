#include "runtime/residency.h"

#include <numeric>

namespace onnx_moe::metal {

namespace {

uint64_t bytes_of(const std::vector<Owned<MTL::Buffer>>& buffers) {
  return std::accumulate(buffers.begin(), buffers.end(), uint64_t{0},
                         [](uint64_t sum, const Owned<MTL::Buffer>& buffer) { return sum + buffer->length(); });
}

}  // namespace

Residency::Residency(MTL::Device& device, MTL::CommandQueue& queue) : limit_(device.recommendedMaxWorkingSetSize()) {
  if (!NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({15, 0, 0})) return;
  const auto descriptor = NS::TransferPtr(MTL::ResidencySetDescriptor::alloc()->init());
  NS::Error* error = nullptr;
  set_ = NS::TransferPtr(device.newResidencySet(descriptor.get(), &error));
  if (set_) {
    queue.addResidencySet(set_.get());
  } else {
    reason_ = "Metal gives no residency set (" + message(error) + ")";
  }
}

std::string Residency::keep(const std::vector<Owned<MTL::Buffer>>& buffers) {
  if (!set_ || buffers.empty()) return reason_;
  const uint64_t bytes = bytes_of(buffers);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (kept_ + bytes > limit_) {
    return "with the weights before them they take " + std::to_string((kept_ + bytes) >> 20) +
           " MiB, of which the device recommends to keep " + std::to_string(limit_ >> 20);
  }
  kept_ += bytes;
  for (const Owned<MTL::Buffer>& buffer : buffers) set_->addAllocation(buffer.get());
  set_->commit();
  set_->requestResidency();  // a set on a queue alone is mapped when a command buffer next needs it
  return "";
}

void Residency::release(const std::vector<Owned<MTL::Buffer>>& buffers) {
  if (!set_ || buffers.empty()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  kept_ -= bytes_of(buffers);
  for (const Owned<MTL::Buffer>& buffer : buffers) set_->removeAllocation(buffer.get());
  set_->commit();
}

}  // namespace onnx_moe::metal
