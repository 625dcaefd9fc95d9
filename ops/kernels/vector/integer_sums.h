// Sums of products of integers, of RowCount activation rows and the weight rows of a panel (panel.h), over the columns
// that share a scale. DotSums has a vector of weight rows for each activation row; MatrixSums goes through instructions
// that multiply two rows with two rows.
#pragma once

#include "kernels/vector/packed_row.h"

namespace onnx_moe {
namespace {

template <typename Isa, int RowCount>
class DotSums {
 public:
  using Ints = typename Isa::Ints;
  static constexpr int kVectors = Isa::kPanelVectors;

  template <typename StartOf>
  ONNX_MOE_INLINE inline void start(const StartOf& start_of) {
    unroll_matrix<RowCount, kVectors>([&](auto m, auto v) ONNX_MOE_INLINE { sums_[m][v] = start_of(m); });
  }

  // What is there becomes the higher limb of what is added next.
  template <typename StartOf>
  ONNX_MOE_INLINE inline void next_limb(const StartOf&) {
    for (auto& row : sums_) {
      for (Ints& sum : row) sum = Isa::shift_limb(sum);
    }
  }

  // GroupSize columns: of the panel from `weights` on, of each packed row from its byte `offset` on.
  template <int GroupSize>
  ONNX_MOE_INLINE inline void add(const uint8_t* weights, const uint8_t* const (&packed)[RowCount], int64_t offset) {
    unroll<GroupSize / 4>([&](auto quad) ONNX_MOE_INLINE {
      Ints codes[kVectors];
      unroll<kVectors>([&](auto v) ONNX_MOE_INLINE {
        codes[v] = Isa::load_ints(weights + (quad * kVectors + v) * 4 * Isa::kLanes);
      });
      constexpr int64_t kOffset = quad / 2 * 4 + quad % 2 * (kChunk / 2);
      unroll<RowCount>([&](auto m) ONNX_MOE_INLINE {
        const Ints x = Isa::broadcast_dword(packed[m] + offset + kOffset);
        unroll<kVectors>([&](auto v) ONNX_MOE_INLINE { sums_[m][v] = Isa::dot(sums_[m][v], codes[v], x); });
      });
    });
  }

  ONNX_MOE_INLINE inline void totals(Ints (&total)[RowCount][kVectors]) const {
    unroll_matrix<RowCount, kVectors>([&](auto m, auto v) ONNX_MOE_INLINE { total[m][v] = sums_[m][v]; });
  }

 protected:
  Ints sums_[RowCount][kVectors];
};

// Each limb has a start of its own, and its sums become dwords before those of the next one begin.
template <typename Isa, int RowCount, int Limbs>
class WordSums : public DotSums<Isa, RowCount> {
 public:
  using Ints = typename Isa::Ints;
  static constexpr int kVectors = Isa::kPanelVectors;

  template <typename StartOf>
  ONNX_MOE_INLINE inline void next_limb(const StartOf& start_of) {
    totals(higher_);
    first_ = false;
    this->start(start_of);
  }

  ONNX_MOE_INLINE inline void totals(Ints (&total)[RowCount][kVectors]) const {
    unroll_matrix<RowCount, kVectors>([&](auto m, auto v) ONNX_MOE_INLINE {
      const Ints sum = Isa::add_words(this->sums_[m][v]);
      total[m][v] = first_ ? sum : Isa::add_ints(Isa::shift_limb(higher_[m][v]), sum);
    });
  }

 private:
  Ints higher_[RowCount][kVectors];
  bool first_ = true;
};

// A vector is two weight rows × eight columns, or two activation rows × eight columns, or 2 × 2 sums. An odd last
// activation row is its own partner.
template <typename Isa, int RowCount>
class MatrixSums {
 public:
  using Ints = typename Isa::Ints;
  static constexpr int kVectors = Isa::kPanelVectors;
  static_assert(Isa::kWeightBias == 0, "sums of signed products start at zero");

  template <typename StartOf>
  ONNX_MOE_INLINE inline void start(const StartOf&) {
    for_each([](Ints& sum) { sum = Isa::zero_ints(); });
  }

  template <typename StartOf>
  ONNX_MOE_INLINE inline void next_limb(const StartOf&) {
    for_each([](Ints& sum) { sum = Isa::shift_limb(sum); });
  }

  template <int GroupSize>
  ONNX_MOE_INLINE inline void add(const uint8_t* weights, const uint8_t* const (&packed)[RowCount], int64_t offset) {
    unroll<GroupSize / 16>([&](auto part) ONNX_MOE_INLINE {
      Ints x[kPairs][2];
      for (int pair = 0; pair < kPairs; ++pair) {
        const uint8_t* first = packed[2 * pair] + offset + part * 8;
        const uint8_t* second = packed[last_of(pair)] + offset + part * 8;
        Isa::zip_rows(first, second, kChunk / 2, x[pair]);
      }
      unroll<2>([&](auto dword) ONNX_MOE_INLINE {
        for (int half = 0; half < 2; ++half) {
          for (int v = 0; v < kVectors; ++v) {
            const int64_t vector = ((part * 2 + dword) * 2 + half) * kVectors + v;
            const Ints codes = Isa::load_ints(weights + vector * 4 * Isa::kLanes);
            for (int pair = 0; pair < kPairs; ++pair) {
              sums_[pair][v][half] = Isa::matrix_dot(sums_[pair][v][half], x[pair][dword], codes);
            }
          }
        }
      });
    });
  }

  ONNX_MOE_INLINE inline void totals(Ints (&total)[RowCount][kVectors]) const {
    for (int pair = 0; pair < kPairs; ++pair) {
      for (int v = 0; v < kVectors; ++v) {
        Isa::unzip_sums(sums_[pair][v], total[2 * pair][v], total[last_of(pair)][v]);
      }
    }
  }

 private:
  static constexpr int kPairs = (RowCount + 1) / 2;
  static constexpr int last_of(int pair) { return 2 * pair + 1 < RowCount ? 2 * pair + 1 : RowCount - 1; }

  template <typename Action>
  ONNX_MOE_INLINE inline void for_each(const Action& action) {
    for (auto& pair : sums_) {
      for (auto& halves : pair) {
        for (Ints& sum : halves) action(sum);
      }
    }
  }

  Ints sums_[kPairs][kVectors][2];
};

}  // namespace
}  // namespace onnx_moe
