// Sets of small numbers as bits of words.
#pragma once

#include <cstdint>

namespace onnx_moe {

inline constexpr int64_t kBitsOfWord = 64;

inline int64_t words_for(int64_t bits) { return (bits + kBitsOfWord - 1) / kBitsOfWord; }

// Sums of neighbours, as wide as they need to be: the builtin is a call where the machine's baseline has no
// instruction.
inline int64_t count_bits(uint64_t word) {
  word -= (word >> 1) & 0x5555555555555555;
  word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return static_cast<int64_t>((word * 0x0101010101010101) >> 56);
}

// Members that two sets of `words` words share.
inline int64_t count_shared(const uint64_t* a, const uint64_t* b, int64_t words) {
  int64_t shared = 0;
  for (int64_t i = 0; i < words; ++i) shared += count_bits(a[i] & b[i]);
  return shared;
}

}  // namespace onnx_moe
