// Dispatch: grouping the (token, slot) assignments by expert.
#pragma once

#include <cstdint>

#include "core/error.h"
#include "core/parallel.h"

namespace onnx_moe {

// Throws an Error that names row and slot (`slots` ids to a row) unless expert_ids[index] lies in [0, num_experts).
template <typename Id>
void check_expert_id(const Id* expert_ids, int64_t index, int64_t slots, int64_t num_experts) {
  const int64_t expert = expert_ids[index];
  if (expert >= 0 && expert < num_experts) return;
  fail("expert_ids holds ", expert, " in row ", index / slots, ", slot ", index % slots,
       ", but experts are numbered 0 to ", num_experts - 1);
}

// A stable counting sort of expert_ids[count], O(count + num_experts). order[i]: flat index of the i-th assignment in
// expert order; offsets[num_experts + 1]; inverse (may be null): position of each flat index in `order`.
// Ids are checked.
template <typename Id, typename Index>
void group_tokens_by_expert(const Id* expert_ids, int64_t count, int64_t slots, int64_t num_experts, Index* order,
                            Index* offsets, Index* inverse) {
  for (int64_t e = 0; e <= num_experts; ++e) offsets[e] = 0;
  for (int64_t i = 0; i < count; ++i) {
    check_expert_id(expert_ids, i, slots, num_experts);
    ++offsets[expert_ids[i] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) offsets[e + 1] += offsets[e];
  // offsets[e] serves as the cursor of expert e and ends where expert e + 1 begins; shifted back afterwards.
  for (int64_t i = 0; i < count; ++i) {
    const Index position = offsets[expert_ids[i]]++;
    order[position] = static_cast<Index>(i);
    if (inverse) inverse[i] = position;
  }
  for (int64_t e = num_experts; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

// Experts that a call works on together.
struct ExpertSet {
  const int32_t* experts;
  int64_t count;
};

// The assignments of a call, grouped by expert, and the experts that have any.
class ExpertGroups {
 public:
  ExpertGroups(const int32_t* expert_ids, int64_t tokens, int64_t slots, int64_t num_experts, Host& host)
      : order_(host, tokens * slots), offsets_(host, num_experts + 1), active_(host, num_experts) {
    group_tokens_by_expert<int32_t, int64_t>(expert_ids, tokens * slots, slots, num_experts, order_.data(),
                                             offsets_.data(), nullptr);
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      if (offsets_[expert] < offsets_[expert + 1]) active_[active_count_++] = static_cast<int32_t>(expert);
    }
  }

  int64_t active_count() const { return active_count_; }
  ExpertSet active_set() const { return {active_.data(), active_count_}; }
  int64_t active(int64_t index) const { return active_[index]; }
  int64_t begin(int64_t expert) const { return offsets_[expert]; }
  int64_t end(int64_t expert) const { return offsets_[expert + 1]; }
  int64_t rows(int64_t index) const { return end(active(index)) - begin(active(index)); }
  // Flat index (token · slots + slot) of each assignment, in expert order.
  const int64_t* order() const { return order_.data(); }

 private:
  Scratch<int64_t> order_;
  Scratch<int64_t> offsets_;
  Scratch<int32_t> active_;
  int64_t active_count_ = 0;
};

}  // namespace onnx_moe
