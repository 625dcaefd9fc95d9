#include "experts/slot_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "experts/residency_options.h"

namespace onnx_moe {

namespace {

// Mapping memory waits for reads that fill other memory, a millisecond and more: rarely, then, and much at once.
constexpr int64_t kChunkBytes = 256 * 1024 * 1024;

}  // namespace

SlotArena::~SlotArena() {
  for (const Chunk& chunk : chunks_) ::munmap(chunk.memory, chunk.bytes);
}

uint8_t* SlotArena::take() {
  if (kept_.empty() && untouched_.empty()) grow();
  std::vector<uint8_t*>& slots = kept_.empty() ? untouched_ : kept_;
  uint8_t* const slot = slots.back();
  slots.pop_back();
  return slot;
}

void SlotArena::give_back(uint8_t* slot, bool keep) {
  constexpr int kPoison = 0xff;  // block scales that are NaN
  if (poison_) std::memset(slot, kPoison, static_cast<size_t>(slot_bytes_));
  if (keep) {
    kept_.push_back(slot);
    return;
  }
  ::madvise(slot, static_cast<size_t>(slot_bytes_), MADV_DONTNEED);
  untouched_.push_back(slot);
}

void SlotArena::drop_kept() {
  while (!kept_.empty()) {
    uint8_t* const slot = kept_.back();
    kept_.pop_back();
    give_back(slot, false);
  }
}

void SlotArena::grow() {
  const int64_t slots = std::max<int64_t>(1, kChunkBytes / slot_bytes_);
  const auto bytes = static_cast<size_t>(slots * slot_bytes_);
  chunks_.reserve(chunks_.size() + 1);
  untouched_.reserve(static_cast<size_t>(slots));
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(memory != MAP_FAILED, "the system gives no ", in_words(static_cast<int64_t>(bytes)), " of memory for slots (",
          std::strerror(errno), "): lower onnx_moe.cache_bytes");
  chunks_.push_back({memory, bytes});
#if defined(MADV_HUGEPAGE)
  // A direct read pins every page that it fills: with pages of 4 KiB a call waited for reads twice as long.
  ::madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  for (int64_t slot = slots; slot-- > 0;) untouched_.push_back(static_cast<uint8_t*>(memory) + slot * slot_bytes_);
}

}  // namespace onnx_moe
