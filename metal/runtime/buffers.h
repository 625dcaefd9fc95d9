// Buffers of activations and scratch, kept for the next call: making one costs more than a small kernel.
#pragma once

#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "runtime/device.h"

namespace onnx_moe::metal {

class BufferPool {
 public:
  explicit BufferPool(const Device& device) : device_(device) {}

  // A buffer on loan; it goes back when this does, which must not be before the commands that use it have completed.
  class Loan {
   public:
    Loan(BufferPool& pool, Owned<MTL::Buffer> buffer) : pool_(&pool), buffer_(std::move(buffer)) {}
    Loan(Loan&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), buffer_(std::move(other.buffer_)) {}
    Loan& operator=(Loan&&) = delete;
    ~Loan() {
      if (pool_) pool_->take_back(std::move(buffer_));
    }

    MTL::Buffer* get() const { return buffer_.get(); }
    void* contents() const { return buffer_->contents(); }

   private:
    BufferPool* pool_;
    Owned<MTL::Buffer> buffer_;
  };

  // At least so many bytes, of any content.
  Loan borrow(size_t bytes);

 private:
  void take_back(Owned<MTL::Buffer> buffer);

  const Device& device_;
  std::mutex mutex_;
  std::map<size_t, std::vector<Owned<MTL::Buffer>>> free_;  // by length
  size_t free_bytes_ = 0;
  size_t lent_bytes_ = 0;
  size_t most_lent_ = 0;  // ever at once: what idle buffers may hold, so that a model's next layer finds all it needs
};

}  // namespace onnx_moe::metal
