// Page-aligned memory for experts, a slot for each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace onnx_moe {

class SlotArena {
 public:
  // slot_bytes: a multiple of a page.
  // poison: whoever still reads a slot that was given back finds other bytes there.
  explicit SlotArena(int64_t slot_bytes, bool poison = false) : slot_bytes_(slot_bytes), poison_(poison) {}
  ~SlotArena();
  SlotArena(const SlotArena&) = delete;
  SlotArena& operator=(const SlotArena&) = delete;

  // Throws an Error when the system gives no memory.
  uint8_t* take();
  // keep: the slot's pages stay with it, for the next one to take it; otherwise the system gets them back.
  void give_back(uint8_t* slot, bool keep);
  // Slots that were given back with their pages.
  int64_t kept() const { return static_cast<int64_t>(kept_.size()); }
  void drop_kept();

 private:
  struct Chunk {
    void* memory;
    size_t bytes;
  };

  void grow();

  int64_t slot_bytes_;
  bool poison_;
  std::vector<Chunk> chunks_;
  std::vector<uint8_t*> kept_;
  std::vector<uint8_t*> untouched_;
};

}  // namespace onnx_moe
