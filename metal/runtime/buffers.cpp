#include "runtime/buffers.h"

namespace onnx_moe::metal {

namespace {

constexpr size_t kSmallest = 4096;
// What idle buffers may hold: the activations of a long prompt's block, but not of several.
constexpr size_t kKept = size_t{256} << 20;

size_t size_class(size_t bytes) {
  size_t size = kSmallest;
  while (size < bytes) size *= 2;
  return size;
}

}  // namespace

BufferPool::Loan BufferPool::borrow(size_t bytes) {
  const size_t size = size_class(bytes);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Owned<MTL::Buffer>>& buffers = free_[size];
    if (!buffers.empty()) {
      Loan loan(*this, std::move(buffers.back()));
      buffers.pop_back();
      free_bytes_ -= size;
      return loan;
    }
  }
  return {*this, device_.allocate(size)};
}

void BufferPool::take_back(Owned<MTL::Buffer> buffer) {
  const size_t size = buffer->length();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (free_bytes_ + size > kKept) return;
  free_[size].push_back(std::move(buffer));
  free_bytes_ += size;
}

}  // namespace onnx_moe::metal
