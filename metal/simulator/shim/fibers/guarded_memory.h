// Memory whose end touches pages that cannot be accessed, as do those before its first page. Its size is rounded up to
// 16 bytes, to keep vectors aligned; what was written to the bytes between is noticed afterwards.
#pragma once

#include <cstddef>
#include <utility>

namespace fibers {

class GuardedMemory {
 public:
  GuardedMemory() = default;
  // Ends the process when there is no memory.
  explicit GuardedMemory(size_t size);
  GuardedMemory(GuardedMemory&& other) noexcept { *this = std::move(other); }
  GuardedMemory& operator=(GuardedMemory&& other) noexcept {
    std::swap(map_, other.map_);
    std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~GuardedMemory();

  char* data() const { return data_; }
  size_t size() const { return size_; }
  // Whether an address is the memory's or its guards'.
  bool holds(const char* address) const { return map_ && address >= map_ && address < map_ + mapped_; }
  // Whether nothing was written past the end.
  bool intact() const;

 private:
  char* map_ = nullptr;
  size_t mapped_ = 0;
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fibers
