// Interleaved weights and few activation rows. A vector is the same eight columns of successive weight rows, as it
// lies: nothing is transposed, summed across lanes or stored; the codes of 32 columns stay in registers while the
// activation rows are multiplied with them. Memory is read as one run for each group of kGroupRows weight rows.
#pragma once

#include <algorithm>

#include "kernels/vector/packed_row.h"
#include "kernels/vector/scales.h"

namespace onnx_moe {
namespace {

// The groups of weight rows of a tile in the order in which they are read, band after band, and the memory that is
// fetched meanwhile: that of the group kFetchedBytes further on, in the next tile after the last one.
class GroupOrder {
 public:
  GroupOrder(const Operands& operands, const Fp4Tile& tile)
      : operands_(operands),
        tile_(tile),
        groups_((tile.columns + kGroupRows - 1) / kGroupRows),
        distance_(std::max<int64_t>(1, kFetchedBytes / (operands.row_bytes() * kGroupRows))) {}

  struct Group {
    const uint8_t* codes;
    const uint8_t* scales;
  };
  int64_t count() const { return tile_.bands * groups_; }
  int band(int64_t index) const { return static_cast<int>(index / groups_); }
  int64_t column(int64_t index) const { return index % groups_ * kGroupRows; }
  Group at(int64_t index) const { return group_of(tile_, index); }
  Group ahead(int64_t index) const {
    const int64_t target = index + distance_;
    if (target < count()) return at(target);
    return tile_.next && target < 2 * count() ? group_of(*tile_.next, target - count()) : at(index);
  }

 private:
  static constexpr int64_t kFetchedBytes = 16384;

  Group group_of(const Fp4Tile& tile, int64_t index) const {
    const int64_t row = tile.band[band(index)].first + column(index);
    return {tile.codes + row * operands_.row_bytes(), tile.scales + row * operands_.scale_row_bytes()};
  }

  const Operands& operands_;
  const Fp4Tile& tile_;
  int64_t groups_;
  int64_t distance_;
};

template <typename Isa, int Limbs>
class InterleavedStream {
 public:
  // Activation rows that are worth the path: above, weights that are decoded once for all cost less.
  static int64_t most_rows(const Operands& operands) {
    return Isa::interleaved_rows(Limbs, operands.format.format == Format::kNvfp4);
  }
  static constexpr bool kTakesAllRows = Isa::interleaved_rows(Limbs, true) == kMaxRows;

  static void multiply(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
    switch (operands.format.format) {
      case Format::kMxfp4:
        return multiply_tile<Format::kMxfp4>(operands, tile, rows, products);
      case Format::kNvfp4:
        return multiply_tile<Format::kNvfp4>(operands, tile, rows, products);
      case Format::kFp4:
        return multiply_tile<Format::kFp4>(operands, tile, rows, products);
    }
  }

 private:
  using Vector = typename Isa::Vector;
  using Ints = typename Isa::Ints;
  using Chunk = PackedChunk<Limbs>;
  static constexpr int kBlockRows = Isa::interleaved_block(Limbs);
  static constexpr int kVectors = Isa::kInterleavedVectors;
  // Memory is the limit of so few rows: to look at a group's scales first (scales_fit) would be to wait for them.
  static constexpr int64_t kFewRows = 2;
  static constexpr int64_t kLineBytes = 4 * kGroupRows;
  template <Format kFormat>
  static constexpr int64_t kScaleBytes = kFormat == Format::kFp4 ? 2 : 1;
  static constexpr int kSecondCache = 2;
  static constexpr bool kBiased = Isa::kWeightBias != 0;
  static constexpr bool kStartsBiased = kSumsStartBiased<Isa, Limbs>;
  // Columns that are summed by themselves: one sum over all of them would gather rounding errors.
  static constexpr int64_t kSumColumns = 512;

  // A group, from the lane at hand on. Only its first block of rows fetches what is ahead.
  struct Weights {
    GroupOrder::Group group;
    GroupOrder::Group ahead;
    int64_t scale_bytes;  // of a group
    int block_shift;
    bool fetches;
  };

  // The columns at hand of activation rows. Each row has a pointer of its own that moves, so that a product finds its
  // activations at a constant distance from it.
  template <int RowCount>
  struct Activations {
    const uint8_t* digits[RowCount];

    ONNX_MOE_INLINE inline void advance(int64_t bytes) {
      for (const uint8_t*& row : digits) row += bytes;
    }
  };

  template <Format kFormat>
  static void multiply_tile(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
    const GroupOrder order(operands, tile);
    const bool rows_fit = kFormat == Format::kMxfp4 && rows.count > kFewRows && all_fit<Isa, Limbs>(operands, rows);
    for (int64_t index = 0; index < order.count(); ++index) {
      const Weights weights{order.at(index), order.ahead(index), operands.scale_row_bytes() * kGroupRows,
                            __builtin_ctzll(static_cast<uint64_t>(operands.format.block_size)), true};
      const Products target{products.data + order.band(index) * products.band_stride + order.column(index),
                            products.stride, 0};
      if (rows_fit && scales_fit(kFormat, weights.group.scales, weights.scale_bytes)) {
        multiply_group<kFormat, ExponentScales<Isa>>(operands, weights, rows, target);
      } else {
        multiply_group<kFormat, FactorScales<Isa, kFormat>>(operands, weights, rows, target);
      }
    }
  }

  // Some vectors of lanes at a time.
  template <Format kFormat, typename Scales>
  static void multiply_group(const Operands& operands, Weights weights, const Rows& rows, const Products& products) {
    constexpr int64_t kStep = kVectors * Isa::kLanes;
    for (int64_t lane = 0; lane < kGroupRows; lane += kStep) {
      for_row_blocks<kBlockRows>(rows.count, [&](int64_t row, auto count) ONNX_MOE_INLINE {
        multiply_block<kFormat, Scales, decltype(count)::value>(
            operands, weights, rows.packed + row, {products.data + row * products.stride + lane, products.stride, 0});
        weights.fetches = false;
      });
      weights.group.codes += 4 * kStep;
      weights.group.scales += operands.format.scale_bytes() * kStep;
    }
  }

  template <Format kFormat, typename Scales, int RowCount>
  ONNX_MOE_NOINLINE static void multiply_block(const Operands& operands, const Weights& weights,
                                               const uint8_t* const* packed, const Products& products) {
    constexpr int64_t kSharing = kFormat == Format::kNvfp4 ? 16 : 32;
    Activations<RowCount> x;
    std::copy_n(packed, RowCount, x.digits);
    for (int64_t start = 0; start < operands.depth; start += kSumColumns) {
      Vector sum[RowCount][kVectors];
      unroll_matrix<RowCount, kVectors>([&](auto m, auto v) ONNX_MOE_INLINE { sum[m][v] = Isa::zero(); });
      const int64_t end = std::min(start + kSumColumns, operands.depth);
      for (int64_t chunk = start; chunk < end; chunk += kChunk) {
        const int64_t chunk_end = std::min(chunk + kChunk, end);
        for (int64_t column = chunk; column < chunk_end; column += kSharing) {
          add_columns<kFormat, Scales, RowCount>(weights, column, x, sum);
          x.advance(kSharing / 2);
        }
        x.advance(Chunk::kBytes - kChunk / 2);
      }
      unroll_matrix<RowCount, kVectors>([&](auto m, auto v) ONNX_MOE_INLINE {
        float* y = products.data + m * products.stride + v * Isa::kLanes;
        Isa::store(y, start == 0 ? sum[m][v] : Isa::add(Isa::load(y), sum[m][v]));
      });
    }
  }

  // Adds the products of columns that share a scale, summed as integers, then scaled by the scales of both sides.
  template <Format kFormat, typename Scales, int RowCount>
  ONNX_MOE_INLINE static void add_columns(const Weights& weights, int64_t column, const Activations<RowCount>& x,
                                          Vector (&sum)[RowCount][kVectors]) {
    constexpr int kLines = kFormat == Format::kNvfp4 ? 2 : 4;
    const uint8_t* codes = weights.group.codes + column * (kLineBytes / 8);
    const uint8_t* scale_codes = weights.group.scales + scales_offset<kFormat>(weights, column);
    if (weights.fetches) fetch_columns<kFormat, kLines>(weights, column);
    if constexpr (RowCount * Limbs == 1 && kFormat != Format::kNvfp4) Isa::pace();  // nvfp4's scales are work enough
    Ints total[RowCount][kVectors];
    if constexpr (Isa::kRegisters < 32 || Isa::kWordSums) {
      sum_by_lines<kLines, RowCount>(codes, x, total);
    } else {
      static_assert(kVectors == 1, "all codes wait in registers");
      sum_by_limbs<kLines, RowCount>(codes, x, total);
    }
    unroll<kVectors>([&](auto v) ONNX_MOE_INLINE {
      const Scales scales(scale_codes + v * (Isa::kLanes * kScaleBytes<kFormat>));
      unroll<RowCount>([&](auto m) ONNX_MOE_INLINE {
        if constexpr (kBiased && !kStartsBiased) {
          total[m][v] = Isa::add_ints(total[m][v], Isa::broadcast_dword(x.digits[m] + Chunk::group_start(0)));
        }
        sum[m][v] = scales.add(Isa::to_float(total[m][v]), x.digits[m] + Chunk::kScales, sum[m][v]);
      });
    });
  }

  // Σ code · v of the columns of `Lines` vectors. All codes wait in registers while limb after limb is multiplied.
  template <int Lines, int RowCount>
  ONNX_MOE_INLINE static void sum_by_limbs(const uint8_t* source, const Activations<RowCount>& x,
                                           Ints (&total)[RowCount][kVectors]) {
    Ints even[Lines];
    Ints odd[Lines];
    unroll<Lines>([&](auto line) ONNX_MOE_INLINE {
      const Ints codes = Isa::load_ints(source + line * kLineBytes);
      even[line] = Isa::low_codes(codes);
      odd[line] = Isa::high_codes(codes);
    });
    // Limbs are summed apart while registers last, so that no product waits for that of another limb.
    constexpr int kSums = RowCount * Limbs <= 3 * kBlockRows / 2 ? Limbs : 1;
    Ints sums[RowCount][kSums];
    unroll<RowCount>([&](auto m) ONNX_MOE_INLINE {
      for (Ints& limb : sums[m]) limb = Isa::zero_ints();
      if constexpr (kStartsBiased) sums[m][0] = Isa::broadcast_dword(x.digits[m] + Chunk::group_start(0));
    });
    unroll<Limbs>([&](auto index) ONNX_MOE_INLINE {
      constexpr int kSum = kSums == 1 ? 0 : index;
      if constexpr (index > 0 && kSums == 1) {
        unroll<RowCount>([&](auto m) ONNX_MOE_INLINE { sums[m][0] = Isa::shift_limb(sums[m][0]); });
      }
      unroll<2 * Lines>([&](auto half) ONNX_MOE_INLINE {
        constexpr int64_t kOffset = (Limbs - 1 - index) * kChunk + half / 2 * 4 + half % 2 * (kChunk / 2);
        const Ints codes = half % 2 == 0 ? even[half / 2] : odd[half / 2];
        unroll<RowCount>([&](auto m) ONNX_MOE_INLINE {
          sums[m][kSum] = Isa::dot_dword(sums[m][kSum], codes, x.digits[m] + kOffset);
        });
      });
    });
    unroll<RowCount>([&](auto m) ONNX_MOE_INLINE {
      total[m][0] = sums[m][0];
      for (int limb = 1; limb < kSums; ++limb) {
        total[m][0] = Isa::add_ints(Isa::shift_limb(total[m][0]), sums[m][limb]);
      }
    });
  }

  // The same where registers hold little more than the sums, or each limb has sums of its own: half of a line's codes
  // at a time.
  template <int Lines, int RowCount>
  ONNX_MOE_INLINE static void sum_by_lines(const uint8_t* source, const Activations<RowCount>& x,
                                           Ints (&total)[RowCount][kVectors]) {
    Ints sums[RowCount][Limbs][kVectors];
    unroll_matrix<RowCount, Limbs>([&](auto m, auto limb) ONNX_MOE_INLINE {
      for (Ints& sum : sums[m][limb]) {
        sum = kStartsBiased ? Isa::broadcast_dword(x.digits[m] + Chunk::group_start(limb)) : Isa::zero_ints();
      }
    });
    unroll_matrix<Lines, 2>([&](auto line, auto half) ONNX_MOE_INLINE {
      Ints codes[kVectors];
      unroll<kVectors>([&](auto v) ONNX_MOE_INLINE {
        const Ints both = Isa::load_ints(source + line * kLineBytes + v * (4 * Isa::kLanes));
        codes[v] = half == 0 ? Isa::low_codes(both) : Isa::high_codes(both);
      });
      unroll_matrix<RowCount, Limbs>([&](auto m, auto limb) ONNX_MOE_INLINE {
        const uint8_t* digits = x.digits[m] + limb * kChunk + line * 4 + half * (kChunk / 2);
        unroll<kVectors>(
            [&](auto v) ONNX_MOE_INLINE { sums[m][limb][v] = Isa::dot_dword(sums[m][limb][v], codes[v], digits); });
      });
    });
    unroll_matrix<RowCount, kVectors>([&](auto m, auto v) ONNX_MOE_INLINE {
      total[m][v] = total_of(sums[m][Limbs - 1][v]);
      unroll<Limbs - 1>([&](auto index) ONNX_MOE_INLINE {
        total[m][v] = Isa::add_ints(Isa::shift_limb(total[m][v]), total_of(sums[m][Limbs - 2 - index][v]));
      });
    });
  }

  ONNX_MOE_INLINE static Ints total_of(Ints sum) {
    if constexpr (Isa::kWordSums) return Isa::add_words(sum);
    return sum;
  }

  template <Format kFormat, int Lines>
  ONNX_MOE_INLINE static void fetch_columns(const Weights& weights, int64_t column) {
    unroll<Lines>([&](auto line) ONNX_MOE_INLINE {
      __builtin_prefetch(weights.ahead.codes + column * (kLineBytes / 8) + line * kLineBytes, 0, kSecondCache);
    });
    __builtin_prefetch(weights.ahead.scales + scales_offset<kFormat>(weights, column), 0, kSecondCache);
  }

  // Of the scales of the block that holds `column`, in those of a group.
  template <Format kFormat>
  ONNX_MOE_INLINE static int64_t scales_offset(const Weights& weights, int64_t column) {
    return (column >> weights.block_shift) * (kGroupRows * kScaleBytes<kFormat>);
  }
};

}  // namespace
}  // namespace onnx_moe
