#include "guarded_memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fibers {

namespace {

constexpr size_t kPage = 4096;
// Address space costs nothing: wide enough for an index that is off by a row or an expert.
constexpr size_t kGuard = size_t{16} << 20;
constexpr size_t kAlignment = 16;
constexpr unsigned char kCanary = 0xA5;

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

}  // namespace

GuardedMemory::GuardedMemory(size_t size) : size_(size) {
  const size_t body = round_up(size, kPage);
  mapped_ = body + 2 * kGuard;
  void* const map = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED || (body && mprotect(static_cast<char*>(map) + kGuard, body, PROT_READ | PROT_WRITE))) {
    std::perror("the simulator has no memory");
    std::abort();
  }
  map_ = static_cast<char*>(map);
  data_ = map_ + kGuard + body - round_up(size, kAlignment);
  std::memset(data_ + size, kCanary, round_up(size, kAlignment) - size);
}

GuardedMemory::~GuardedMemory() {
  if (map_) munmap(map_, mapped_);
}

bool GuardedMemory::intact() const {
  for (size_t i = size_; i < round_up(size_, kAlignment); ++i) {
    if (static_cast<unsigned char>(data_[i]) != kCanary) return false;
  }
  return true;
}

}  // namespace fibers
