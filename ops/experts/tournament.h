// The first, under an order, of those indices that take part. Letting one in or out, or placing it anew after the order
// has changed for it alone, takes O(log size) and no memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace onnx_moe {

class Tournament {
 public:
  static constexpr int32_t kNobody = -1;

  explicit Tournament(int64_t size) {
    while (leaves_ < static_cast<size_t>(size)) leaves_ *= 2;
    winners_.assign(2 * leaves_, kNobody);
  }

  int64_t winner() const { return winners_[1]; }
  bool takes_part(int64_t index) const { return winners_[leaf(index)] != kNobody; }

  // before(a, b): whether index a comes before index b; a strict order of all indices that take part.
  template <typename Before>
  void place(int64_t index, bool takes_part, Before&& before) {
    size_t node = leaf(index);
    winners_[node] = takes_part ? static_cast<int32_t>(index) : kNobody;
    for (node /= 2; node >= 1; node /= 2) {
      const int32_t left = winners_[2 * node];
      const int32_t right = winners_[2 * node + 1];
      const int32_t winner = left == kNobody || (right != kNobody && before(right, left)) ? right : left;
      if (winner == winners_[node] && winner != index) return;  // nothing changes further up
      winners_[node] = winner;
    }
  }

 private:
  size_t leaf(int64_t index) const { return leaves_ + static_cast<size_t>(index); }

  size_t leaves_ = 1;
  std::vector<int32_t> winners_;  // node i has the children 2i and 2i + 1; the root is node 1
};

}  // namespace onnx_moe
