#include "runtime/buffers.h"

#include <algorithm>

namespace onnx_moe::metal {

namespace {

constexpr size_t kSmallest = 4096;

// Four sizes an octave: at most a quarter more than asked for, and buffers of nearly equal calls fit each other.
size_t size_class(size_t bytes) {
  size_t octave = kSmallest;
  while (octave * 2 <= bytes) octave *= 2;
  const size_t step = octave / 4;
  return std::max(kSmallest, (bytes + step - 1) / step * step);
}

}  // namespace

BufferPool::Loan BufferPool::borrow(size_t bytes) {
  const size_t size = size_class(bytes);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    lent_bytes_ += size;
    most_lent_ = std::max(most_lent_, lent_bytes_);
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
  lent_bytes_ -= size;
  if (free_bytes_ + size > most_lent_) return;
  free_[size].push_back(std::move(buffer));
  free_bytes_ += size;
}

}  // namespace onnx_moe::metal
