#include "experts/stack_distance.h"

#include <algorithm>

#include "experts/bit_set.h"

namespace onnx_moe {

namespace {

constexpr int64_t kWordsOfBlock = 8;
constexpr int64_t kBitsOfBlock = kWordsOfBlock * kBitsOfWord;

int64_t line_length(int64_t keys) { return (4 * keys + kBitsOfBlock - 1) / kBitsOfBlock * kBitsOfBlock; }

}  // namespace

StackDistance::StackDistance(int64_t keys)
    : words_(static_cast<size_t>(line_length(keys) / kBitsOfWord), 0),
      block_counts_(static_cast<size_t>(line_length(keys) / kBitsOfBlock), 0),
      key_at_(static_cast<size_t>(line_length(keys)), 0),
      position_(static_cast<size_t>(keys), kNeverUsed) {}

int64_t StackDistance::of(int64_t key) const {
  const int64_t position = position_[static_cast<size_t>(key)];
  if (position == kNeverUsed) return kNeverUsed;
  const auto word = static_cast<size_t>(position / kBitsOfWord);
  const auto block = static_cast<size_t>(position / kBitsOfBlock);
  // Two shifts, since a shift by the whole width of a word is undefined.
  int64_t bits = count_bits(words_[word] >> (position % kBitsOfWord) >> 1);
  const size_t end_of_block = (block + 1) * kWordsOfBlock;
  for (size_t i = word + 1; i < end_of_block; ++i) bits += count_bits(words_[i]);
  const auto last = static_cast<size_t>((end_ - 1) / kBitsOfBlock);
  for (size_t i = block + 1; i <= last; ++i) bits += block_counts_[i];
  return bits;
}

void StackDistance::use(int64_t key) {
  if (end_ == static_cast<int64_t>(key_at_.size())) compact();
  int64_t& position = position_[static_cast<size_t>(key)];
  if (position != kNeverUsed) {
    words_[static_cast<size_t>(position / kBitsOfWord)] &= ~(uint64_t{1} << (position % kBitsOfWord));
    --block_counts_[static_cast<size_t>(position / kBitsOfBlock)];
  }
  position = end_++;
  words_[static_cast<size_t>(position / kBitsOfWord)] |= uint64_t{1} << (position % kBitsOfWord);
  ++block_counts_[static_cast<size_t>(position / kBitsOfBlock)];
  key_at_[static_cast<size_t>(position)] = static_cast<int32_t>(key);
}

void StackDistance::compact() {
  std::fill(words_.begin(), words_.end(), 0);
  std::fill(block_counts_.begin(), block_counts_.end(), 0);
  const int64_t old_end = end_;
  end_ = 0;
  for (int64_t old = 0; old < old_end; ++old) {
    const int32_t key = key_at_[static_cast<size_t>(old)];
    if (position_[static_cast<size_t>(key)] != old) continue;  // used again later
    position_[static_cast<size_t>(key)] = kNeverUsed;
    use(key);
  }
}

}  // namespace onnx_moe
