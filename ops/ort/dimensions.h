// A tensor's dimensions, held in place: what a call learns of its tensors takes no memory from the heap.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "core/error.h"

namespace onnx_moe::ort {

class Dimensions {
 public:
  Dimensions() = default;
  Dimensions(std::initializer_list<int64_t> values) : Dimensions(values.begin(), values.size()) {}
  explicit Dimensions(const std::vector<int64_t>& values) : Dimensions(values.data(), values.size()) {}

  void resize(size_t rank) {
    require(rank <= kMostRank, "a tensor has ", rank, " dimensions, but at most ", kMostRank, " are taken: reshape it");
    rank_ = rank;
  }
  void push_back(int64_t size) {
    resize(rank_ + 1);
    back() = size;
  }
  void pop_back() { --rank_; }

  size_t size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  int64_t* data() { return values_; }
  const int64_t* data() const { return values_; }
  int64_t& back() { return values_[rank_ - 1]; }
  int64_t back() const { return values_[rank_ - 1]; }
  int64_t operator[](size_t index) const { return values_[index]; }
  const int64_t* begin() const { return values_; }
  const int64_t* end() const { return values_ + rank_; }

 private:
  static constexpr size_t kMostRank = 12;

  Dimensions(const int64_t* values, size_t rank) {
    resize(rank);
    std::copy_n(values, rank, values_);
  }

  int64_t values_[kMostRank] = {};
  size_t rank_ = 0;
};

}  // namespace onnx_moe::ort
