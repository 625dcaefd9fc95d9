// Few activation rows: the weights are read once, as they lie, and multiplied as integers (see packed_row.h). Memory
// is the limit here, so several weight rows are in flight, and the rows to come are fetched ahead — across the end of
// a tile into the next one.
#pragma once

#include <algorithm>

#include "kernels/vector/packed_row.h"
#include "kernels/vector/scales.h"

namespace onnx_moe {
namespace {

// Bytes ahead of the reader that are fetched, into the second cache: of 2, 4, 8 and 16 KiB, into either cache, this
// read memory fastest (11 to 13 GB/s where plain loads read 12 to 13).
constexpr int64_t kPrefetchBytes = 16384;
constexpr int kSecondCache = 2;

template <typename Isa, int Limbs>
class Stream {
 public:
  // Activation rows that are worth the path: above, decoding a panel for all rows costs less.
  static constexpr int kMostRows = Isa::stream_rows(Limbs);
  static int64_t most_rows(const Operands&) { return kMostRows; }
  static constexpr bool kTakesAllRows = false;

  static void multiply(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
    with_constant<kMostRows>(rows.count, [&](auto count) {
      for (int band = 0; band < tile.bands; ++band) {
        multiply_band<decltype(count)::value>(operands, tile, band, rows,
                                              {products.data + band * products.band_stride, products.stride, 0});
      }
    });
  }

 private:
  using Vector = typename Isa::Vector;
  using Ints = typename Isa::Ints;
  using Chunk = PackedChunk<Limbs>;
  static constexpr int kVectorsPerChunk = static_cast<int>(kLanesPerChunk / Isa::kLanes);
  static constexpr int64_t kVectorBytes = 4 * Isa::kLanes;
  static constexpr bool kBiased = Isa::kWeightBias != 0;
  static constexpr int64_t kChunkBytes = kChunk / 2;
  static constexpr int kScaleVectors = ScaleSpread<Isa>::kScaleVectors;

  // Weight rows at a constant distance from each other, with their scales.
  struct WeightRows {
    const uint8_t* codes;
    const uint8_t* scales;
    int64_t code_step;
    int64_t scale_step;

    WeightRows(const Operands& operands, const Fp4Tile& tile, int band)
        : codes(tile.codes + tile.band[band].first * operands.row_bytes()),
          scales(tile.scales + tile.band[band].first * operands.scale_row_bytes()),
          code_step(tile.band[band].step * operands.row_bytes()),
          scale_step(tile.band[band].step * operands.scale_row_bytes()) {}

    void advance(int64_t rows) {
      codes += rows * code_step;
      scales += rows * scale_step;
    }
  };

  template <int RowCount>
  static void multiply_band(const Operands& operands, const Fp4Tile& tile, int band, const Rows& rows,
                            const Products& products) {
    const ScaleSpread<Isa> spread(operands.format.block_size);
    WeightRows weights(operands, tile, band);
    // What is fetched meanwhile: rows of this band, then those that are read after it.
    const int64_t distance = kPrefetchBytes / operands.row_bytes() + 1;
    WeightRows ahead = weights;
    ahead.advance(distance);
    bool beyond = false;
    int64_t column = 0;
    const auto multiply_rows = [&](auto count) ONNX_MOE_INLINE {
      constexpr int kCount = decltype(count)::value;
      if (!beyond && column + distance >= tile.columns) {
        beyond = true;
        const bool last_band = band + 1 == tile.bands;
        if (!last_band) ahead = WeightRows(operands, tile, band + 1);
        if (last_band && tile.next) ahead = WeightRows(operands, *tile.next, 0);
      }
      multiply_group<RowCount, kCount>(operands, spread, weights, ahead, rows, products.data + column, products.stride);
      weights.advance(kCount);
      ahead.advance(kCount);
      column += kCount;
    };
    while (column + Isa::kStreamRows <= tile.columns) multiply_rows(std::integral_constant<int, Isa::kStreamRows>{});
    while (column < tile.columns) multiply_rows(std::integral_constant<int, 1>{});
  }

  template <int RowCount, int Count>
  ONNX_MOE_INLINE static void multiply_group(const Operands& operands, const ScaleSpread<Isa>& spread,
                                             const WeightRows& weights, const WeightRows& ahead, const Rows& rows,
                                             float* products, int64_t stride) {
    Vector total[RowCount][Count];
    for (auto& row : total) std::fill(std::begin(row), std::end(row), Isa::zero());
    const uint8_t* codes = weights.codes;
    const uint8_t* fetched = ahead.codes;
    const uint8_t* x[RowCount];
    for (int m = 0; m < RowCount; ++m) x[m] = rows.packed[m];
    const auto step = [&] {
      codes += kChunkBytes;
      fetched += kChunkBytes;
      for (int m = 0; m < RowCount; ++m) x[m] += Chunk::kBytes;
    };
    for (int64_t start = 0; start < operands.depth; start += spread.span) {
      Vector scale[Count][kScaleVectors];
      for (int r = 0; r < Count; ++r) load_span_scales(operands, weights, r, start, scale[r]);
      const int64_t end = std::min(spread.span, operands.depth - start);
      const typename Isa::Index* index = spread.index;
      int64_t column = 0;
      for (; column + kChunk <= end; column += kChunk, index += kVectorsPerChunk, step()) {
        for (int r = 0; r < Count; ++r) __builtin_prefetch(fetched + r * ahead.code_step, 0, kSecondCache);
        add_chunk<RowCount, Count>(codes, weights.code_step, index, scale, x, total);
      }
      if (column == end) continue;
      alignas(64) uint8_t last[Count][kChunkBytes] = {};
      for (int r = 0; r < Count; ++r) {
        std::memcpy(last[r], codes + r * weights.code_step, static_cast<size_t>((end - column) / 2));
      }
      add_chunk<RowCount, Count>(last[0], kChunkBytes, index, scale, x, total);
    }
    for (int r = 0; r < Count; ++r) {
      for (int64_t byte = 0; byte < operands.scale_row_bytes(); byte += 64) {
        __builtin_prefetch(ahead.scales + r * ahead.scale_step + byte, 0, kSecondCache);
      }
    }
    for (int m = 0; m < RowCount; ++m) {
      float sums[Count];
      if constexpr (Count == 4) {
        Isa::sum_4(total[m], sums);
      } else {
        for (int r = 0; r < Count; ++r) sums[r] = Isa::sum(total[m][r]);
      }
      std::copy_n(sums, Count, products + m * stride);
    }
  }

  // Scales of weight row `r` for a span of columns from `start`.
  ONNX_MOE_INLINE static void load_span_scales(const Operands& operands, const WeightRows& weights, int r,
                                               int64_t start, Vector (&scale)[kScaleVectors]) {
    const BlockFormat& format = operands.format;
    const int block_shift = __builtin_ctzll(static_cast<uint64_t>(format.block_size));
    const int64_t first = start >> block_shift;
    const int64_t blocks = operands.depth >> block_shift;
    const uint8_t* source = weights.scales + r * weights.scale_step;
    for (int v = 0; v < kScaleVectors; ++v) {
      const int64_t block = first + v * Isa::kLanes;
      scale[v] = block < blocks ? load_scales<Isa>(format.format, source + block * format.scale_bytes(), blocks - block)
                                : Isa::zero();
    }
    if constexpr (kScaleVectors == 2) {
      if (format.block_size > 16) scale[1] = scale[0];
    }
  }

  // Sums of eight columns a lane, as integers, then scaled by the scales of both sides.
  template <int RowCount, int Count>
  ONNX_MOE_INLINE static void add_chunk(const uint8_t* codes, int64_t code_step, const typename Isa::Index* index,
                                        const Vector (&scales)[Count][kScaleVectors],
                                        const uint8_t* const (&x)[RowCount], Vector (&total)[RowCount][Count]) {
    unroll<kVectorsPerChunk>([&](auto vector) ONNX_MOE_INLINE {
      constexpr int64_t kOffset = vector * kVectorBytes;
      for (int r = 0; r < Count; ++r) {
        const Ints row_codes = Isa::load_ints(codes + r * code_step + kOffset);
        const Ints even = Isa::low_codes(row_codes);
        const Ints odd = Isa::high_codes(row_codes);
        constexpr int kScaleVector = vector * kScaleVectors / kVectorsPerChunk;
        const Vector scale = Isa::permute(scales[r][kScaleVector], index[vector]);
        for (int m = 0; m < RowCount; ++m) {
          const Ints starts = Isa::load_ints(x[m] + Chunk::kStarts + kOffset);
          // With one limb the sum starts there; with more it would be shifted.
          Ints sum =
              dot_limbs<Isa, Limbs>(kBiased && Limbs == 1 ? starts : Isa::zero_ints(), even, odd, x[m] + kOffset);
          if constexpr (kBiased && Limbs > 1) sum = Isa::add_ints(sum, starts);
          const Vector products = Isa::to_float(sum);
          const Vector x_scale = Isa::load(reinterpret_cast<const float*>(x[m] + Chunk::kScales + kOffset));
          total[m][r] = Isa::multiply_add(Isa::multiply(products, x_scale), scale, total[m][r]);
        }
      }
    });
  }
};

}  // namespace
}  // namespace onnx_moe
