// Distances in an LRU stack: how many other keys were used since a key's last use. A cache of c keys holds exactly
// those whose distance is below c (Mattson et al., 1970), so one pass over a trace gives the hits of every capacity.
#pragma once

#include <cstdint>
#include <vector>

namespace onnx_moe {

class StackDistance {
 public:
  explicit StackDistance(int64_t keys);

  static constexpr int64_t kNeverUsed = -1;
  int64_t of(int64_t key) const;
  // Uses `key`: its distance is 0 until another is used.
  void use(int64_t key);

 private:
  void compact();

  // The last uses of keys lie as bits on a line of time; a distance is the number of bits behind a position. Bits are
  // counted by words and by blocks of words; the line is packed when it is full, which costs O(1) a use.
  std::vector<uint64_t> words_;
  std::vector<int32_t> block_counts_;
  std::vector<int32_t> key_at_;
  std::vector<int64_t> position_;  // by key; kNeverUsed before its first use
  int64_t end_ = 0;                // where the next use goes
};

}  // namespace onnx_moe
