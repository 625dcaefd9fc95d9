#include "runtime/weights.h"

#include <cstring>

namespace onnx_moe::metal {

namespace {

// Copies from this size on are worth a word: smaller tensors lie in the model file itself, where nothing is aligned.
constexpr size_t kRemarkFrom = size_t{64} << 10;

}  // namespace

Weights::Weights(Device& device, const std::vector<ConstantMemory>& constants) : device_(device) {
  const AutoreleaseScope scope;
  for (const ConstantMemory& constant : constants) take(constant);
  not_resident_ = device_.residency().keep(buffers_);
  is_resident_ = not_resident_.empty();
}

Weights::~Weights() {
  const AutoreleaseScope scope;
  if (is_resident_) device_.residency().release(buffers_);
}

void Weights::take(const ConstantMemory& constant) {
  const auto bytes = static_cast<size_t>(constant.bytes);
  size_t offset = 0;
  Owned<MTL::Buffer> buffer = device_.wrap(constant.data, bytes, offset);
  if (!buffer) {
    buffer = device_.allocate(bytes);
    std::memcpy(buffer->contents(), constant.data, bytes);
    offset = 0;
    copied_bytes_ += bytes;
  }
  slices_[constant.data] = {buffer.get(), offset};
  buffers_.push_back(std::move(buffer));
}

std::string Weights::remark() const {
  std::string remark;
  if (copied_bytes_ >= kRemarkFrom) {
    remark = "the GPU has a copy of " + std::to_string(copied_bytes_ >> 10) +
             " KiB of its weights: Metal does not take them where they lie (external data that begins at multiples of "
             "16 bytes, as onnx_moe.export writes it, needs none)";
  }
  if (!not_resident_.empty()) {
    remark += (remark.empty() ? "" : "; ") + ("its weights are not kept resident: " + not_resident_);
  }
  return remark;
}

BufferSlice Weights::find(const void* data) const {
  const auto found = slices_.find(data);
  return found == slices_.end() ? BufferSlice{} : found->second;
}

}  // namespace onnx_moe::metal
