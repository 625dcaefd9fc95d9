// Many activation rows: a panel of weight rows is decoded once into the cache, a lane for each weight row, and
// multiplied with all of them. What the panel holds, floats with their scales applied or integers, is `Content`:
// FloatPanel and IntPanel below. Where it comes from, row by row or interleaved, is `Source` (panel_source.h).
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/vector/integer_sums.h"
#include "kernels/vector/panel_source.h"

namespace onnx_moe {
namespace {

// Panels of floats: the decoded weights, [column][vector].
template <typename Isa>
struct FloatPanel {
  using Vector = typename Isa::Vector;
  static constexpr int kVectors = Isa::kPanelVectors;
  static constexpr int64_t kColumns = 256;  // 32 KiB of 32 weight rows
  static constexpr int kMostRows = Isa::kFloatRows;

  alignas(64) float weights[kColumns * kVectors * Isa::kLanes];
  PanelScales<Isa, kColumns> scales;

  ONNX_MOE_INLINE inline void put(int64_t column, int vector, const typename Isa::Ints (&codes)[4]) {
    unroll<4>([&](auto dword) ONNX_MOE_INLINE {
      const float* scale = scales.at(column + 8 * dword) + vector * Isa::kLanes;
      const Vector scale_vector = Isa::load(scale);
      unroll<8>([&](auto nibble) ONNX_MOE_INLINE {
        float* target = weights + ((column + 8 * dword + nibble) * kVectors + vector) * Isa::kLanes;
        Isa::store(target, Isa::multiply(Isa::template decode<nibble>(codes[dword]), scale_vector));
      });
    });
  }

  template <int RowCount>
  ONNX_MOE_INLINE inline void multiply(const Operands&, const Rows& rows, int64_t first_row, int64_t start,
                                       int64_t columns, Vector (&sum)[RowCount][kVectors], PanelFetch& fetch) const {
    const float* x[RowCount];
    for (int m = 0; m < RowCount; ++m) x[m] = rows.values[first_row + m] + start;
    for (int64_t unit = 0; unit < columns; unit += kUnit) {
      fetch.fetch_some();
      const int64_t end = std::min(unit + kUnit, columns);
      for (int64_t column = unit; column < end; ++column) {
        Vector w[kVectors];
        unroll<kVectors>([&](auto v)
                             ONNX_MOE_INLINE { w[v] = Isa::load(weights + (column * kVectors + v) * Isa::kLanes); });
        unroll<RowCount>([&](auto m) ONNX_MOE_INLINE {
          const Vector value = Isa::broadcast(x[m] + column);
          unroll<kVectors>([&](auto v) ONNX_MOE_INLINE { sum[m][v] = Isa::multiply_add(value, w[v], sum[m][v]); });
        });
      }
    }
  }
};

// Panels of integers, [dword][half][vector]: four columns of a weight row in a lane, in the order of packed_row.h. The
// halves are the even and the odd columns, or, for products of matrices, the first and the last weight rows.
template <typename Isa, int Limbs>
struct IntPanel {
  using Vector = typename Isa::Vector;
  using Ints = typename Isa::Ints;
  static constexpr int kVectors = Isa::kPanelVectors;
  static constexpr int64_t kColumns = 512;  // 16 KiB of 32 weight rows
  static constexpr int kMostRows = Isa::kIntRows;
  static constexpr int64_t kVectorBytes = 4 * Isa::kLanes;
  static constexpr bool kBiased = Isa::kWeightBias != 0;
  static constexpr bool kStartsBiased = kSumsStartBiased<Isa, Limbs>;
  static constexpr int kStarts = kStartsPerGroup<Isa, Limbs>;
  template <int RowCount>
  using Sums =
      std::conditional_t<Isa::kMatrixDot, MatrixSums<Isa, RowCount>,
                         std::conditional_t<Isa::kWordSums, WordSums<Isa, RowCount, Limbs>, DotSums<Isa, RowCount>>>;

  alignas(64) uint8_t weights[kColumns / 4 * kVectors * kVectorBytes];
  PanelScales<Isa, kColumns> scales;

  ONNX_MOE_INLINE inline void put(int64_t column, int vector, const typename Isa::Ints (&codes)[4]) {
    for (int dword = 0; dword < 4; ++dword) {
      uint8_t* target = weights + ((column / 4 + 2 * dword) * kVectors + vector) * kVectorBytes;
      Ints pair[2] = {Isa::low_codes(codes[dword]), Isa::high_codes(codes[dword])};
      if constexpr (Isa::kMatrixDot) Isa::zip_codes(pair);
      Isa::store_ints(target, pair[0]);
      Isa::store_ints(target + kVectors * kVectorBytes, pair[1]);
    }
  }

  template <int RowCount>
  ONNX_MOE_INLINE inline void multiply(const Operands& operands, const Rows& rows, int64_t first_row, int64_t start,
                                       int64_t columns, Vector (&sum)[RowCount][kVectors], PanelFetch& fetch) const {
    const uint8_t* packed[RowCount];
    for (int m = 0; m < RowCount; ++m) packed[m] = rows.packed[first_row + m];
    const int64_t group_starts = group_starts_offset<Limbs>(operands);
    if (group_size(operands) == 16) return multiply_groups<16>(packed, group_starts, start, columns, sum, fetch);
    multiply_groups<32>(packed, group_starts, start, columns, sum, fetch);
  }

 private:
  template <int GroupSize, int RowCount>
  ONNX_MOE_INLINE inline void multiply_groups(const uint8_t* const (&packed)[RowCount], int64_t group_starts,
                                              int64_t start, int64_t columns, Vector (&sum)[RowCount][kVectors],
                                              PanelFetch& fetch) const {
    using Chunk = PackedChunk<Limbs>;
    for (int64_t column = 0; column < columns; column += GroupSize) {
      if (column % kUnit == 0) fetch.fetch_some();
      const int64_t position = start + column;
      const int64_t chunk = position / kChunk * Chunk::kBytes;
      const int64_t digits = chunk + position % kChunk / 2;
      const auto start_of = [&](int m, int limb) ONNX_MOE_INLINE {
        return Isa::broadcast_dword(packed[m] + group_starts + (position / GroupSize * kStarts + limb) * 4);
      };
      Sums<RowCount> sums;
      sums.start([&](int m) { return kStartsBiased ? start_of(m, Limbs - 1) : Isa::zero_ints(); });
      unroll<Limbs>([&](auto index) ONNX_MOE_INLINE {
        constexpr int kLimb = Limbs - 1 - index;
        if constexpr (index > 0) sums.next_limb([&](int m) { return start_of(m, kLimb); });
        const uint8_t* w = reload(weights + column / 4 * kVectors * kVectorBytes);
        sums.template add<GroupSize>(w, packed, digits + kLimb * kChunk);
      });
      Ints total[RowCount][kVectors];
      sums.totals(total);
      if constexpr (kBiased && !kStartsBiased) {
        for (int m = 0; m < RowCount; ++m) {
          const Ints start_sum = start_of(m, 0);
          for (int v = 0; v < kVectors; ++v) total[m][v] = Isa::add_ints(total[m][v], start_sum);
        }
      }
      const float* scale = scales.at(column);
      unroll<RowCount>([&](auto m) ONNX_MOE_INLINE {
        const uint8_t* x_scales = packed[m] + chunk + Chunk::kScales + position % kChunk / 2;
        const Vector x_scale = Isa::broadcast(reinterpret_cast<const float*>(x_scales));
        unroll<kVectors>([&](auto v) ONNX_MOE_INLINE {
          sum[m][v] = Isa::multiply_add(Isa::multiply(Isa::to_float(total[m][v]), x_scale),
                                        Isa::load(scale + v * Isa::kLanes), sum[m][v]);
        });
      });
    }
  }
};

template <typename Isa, template <typename> typename SourceOf, typename Content>
class PanelProducts {
 public:
  static void multiply(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
    const int vectors_per_band = kVectors / tile.bands;
    Content content;
    for (int64_t column = 0; column < tile.columns; column += vectors_per_band * Isa::kLanes) {
      float* targets[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        targets[v] =
            products.data + v / vectors_per_band * products.band_stride + column + v % vectors_per_band * Isa::kLanes;
      }
      const Source source(operands, tile, column, vectors_per_band);
      const int64_t row_blocks = (rows.count + Content::kMostRows - 1) / Content::kMostRows;
      PanelFetch fetch(source.runs(), (operands.depth + kUnit - 1) / kUnit * (kVectors + row_blocks));
      for (int64_t start = 0; start < operands.depth; start += Content::kColumns) {
        const int64_t end = std::min(operands.depth, start + Content::kColumns);
        decode(operands, source, start, end, content, fetch);
        multiply_part(operands, content, rows, start, end, targets, products.stride, fetch);
      }
    }
  }

 private:
  using Vector = typename Isa::Vector;
  using Source = SourceOf<Isa>;
  static constexpr int kVectors = Isa::kPanelVectors;

  ONNX_MOE_NOINLINE static void decode(const Operands& operands, const Source& source, int64_t start, int64_t end,
                                       Content& content, PanelFetch& fetch) {
    content.scales.load(operands, source, start, end);
    for (int64_t column = start; column < end; column += kUnit) {
      for (int vector = 0; vector < kVectors; ++vector) {
        fetch.fetch_some();
        typename Isa::Ints codes[4];
        source.load_codes(vector, column, codes);
        content.put(column - start, vector, codes);
      }
    }
  }

  ONNX_MOE_INLINE static void multiply_part(const Operands& operands, const Content& content, const Rows& rows,
                                            int64_t start, int64_t end, float* const (&targets)[kVectors],
                                            int64_t stride, PanelFetch& fetch) {
    for_row_blocks<Content::kMostRows>(rows.count, [&](int64_t row, auto count) ONNX_MOE_INLINE {
      multiply_block<decltype(count)::value>(operands, content, rows, row, start, end, targets, stride, fetch);
    });
  }

  template <int RowCount>
  ONNX_MOE_NOINLINE static void multiply_block(const Operands& operands, const Content& content, const Rows& rows,
                                               int64_t first_row, int64_t start, int64_t end,
                                               float* const (&targets)[kVectors], int64_t stride, PanelFetch& fetch) {
    Vector sum[RowCount][kVectors];
    unroll_matrix<RowCount, kVectors>([&](auto m, auto v) ONNX_MOE_INLINE { sum[m][v] = Isa::zero(); });
    content.template multiply<RowCount>(operands, rows, first_row, start, end - start, sum, fetch);
    unroll_matrix<RowCount, kVectors>([&](auto m, auto v) ONNX_MOE_INLINE {
      // A part is summed by itself: one sum over all columns would gather rounding errors.
      float* target = targets[v] + (first_row + m) * stride;
      Isa::store(target, start == 0 ? sum[m][v] : Isa::add(Isa::load(target), sum[m][v]));
    });
  }
};

}  // namespace
}  // namespace onnx_moe
