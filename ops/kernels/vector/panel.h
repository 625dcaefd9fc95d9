// Many activation rows: a panel of weight rows is decoded once into the cache, a lane for each weight row, and
// multiplied with all of them. What the panel holds, floats with their scales applied or integers, is `Content`:
// FloatPanel and IntPanel below.
#pragma once

#include <algorithm>

#include "kernels/vector/packed_row.h"
#include "kernels/vector/scales.h"

namespace onnx_moe {
namespace {

// 16 bytes of each of a vector's weight rows are decoded at once: 32 columns.
constexpr int64_t kUnitBytes = 16;
constexpr int64_t kUnit = 2 * kUnitBytes;

// The weight rows behind a panel: lane l of vector v is row [v · kLanes + l].
template <typename Isa>
struct PanelRows {
  static constexpr int kCount = Isa::kPanelVectors * Isa::kLanes;
  const uint8_t* codes[kCount];
  const uint8_t* scales[kCount];
  int64_t ahead;  // from a row's codes to those of the panel to come, which are fetched meanwhile
  int64_t scales_ahead;
};

// Fetches the panel to come while the one at hand is decoded and multiplied, row by row, a few lines at a time: all at
// once, fetches fill the core's queue of misses and hold everything up behind them.
template <typename Isa>
class PanelFetch {
 public:
  // `turns`: how often fetch_some will be called.
  PanelFetch(const Operands& operands, const PanelRows<Isa>& rows, int64_t turns)
      : rows_(rows),
        row_bytes_(operands.row_bytes()),
        scale_row_bytes_(operands.scale_row_bytes()),
        bytes_per_turn_((row_bytes_ * PanelRows<Isa>::kCount / kCacheLine + turns - 1) / turns * kCacheLine) {}

  ONNX_MOE_INLINE inline void fetch_some() {
    if (row_ == PanelRows<Isa>::kCount) return;
    const uint8_t* row = rows_.codes[row_] + rows_.ahead;
    for (int64_t i = 0; i < bytes_per_turn_; i += kCacheLine) __builtin_prefetch(row + byte_ + i, 0, kSecondCache);
    byte_ += bytes_per_turn_;
    if (byte_ >= row_bytes_) next_row();
  }

 private:
  static constexpr int64_t kCacheLine = 64;
  static constexpr int kSecondCache = 2;

  void next_row() {
    for (int64_t byte = 0; byte < scale_row_bytes_; byte += kCacheLine) {
      __builtin_prefetch(rows_.scales[row_] + rows_.scales_ahead + byte, 0, kSecondCache);
    }
    byte_ = 0;
    ++row_;
  }

  const PanelRows<Isa>& rows_;
  int64_t row_bytes_;
  int64_t scale_row_bytes_;
  int64_t bytes_per_turn_;
  int row_ = 0;
  int64_t byte_ = 0;
};

// kUnitBytes bytes from `offset` of kLanes rows, dword j of every row in out[j]; zeros beyond `size`.
template <typename Isa>
ONNX_MOE_INLINE inline void load_unit(const uint8_t* const* rows, int64_t offset, int64_t size,
                                      typename Isa::Ints (&out)[4]) {
  if (offset + kUnitBytes <= size) return Isa::load_transposed(rows, offset, out);
  alignas(64) uint8_t padded[Isa::kLanes][kUnitBytes] = {};
  const uint8_t* pointers[Isa::kLanes];
  for (int lane = 0; lane < Isa::kLanes; ++lane) {
    std::memcpy(padded[lane], rows[lane] + offset, static_cast<size_t>(size - offset));
    pointers[lane] = padded[lane];
  }
  Isa::load_transposed(pointers, 0, out);
}

// Scales of part of a panel: a vector for each block and vector of rows.
template <typename Isa, int64_t MostColumns>
struct PanelScales {
  using Vector = typename Isa::Vector;
  static constexpr int kVectors = Isa::kPanelVectors;
  // Loads come in units of 16 bytes, which may reach beyond the part.
  alignas(64) float values[(MostColumns / 16 + 16) * kVectors * Isa::kLanes];
  int block_shift;

  ONNX_MOE_INLINE inline void load(const Operands& operands, const PanelRows<Isa>& rows, int64_t start, int64_t end) {
    const BlockFormat& format = operands.format;
    block_shift = __builtin_ctzll(static_cast<uint64_t>(format.block_size));
    const int64_t first = start / format.block_size * format.scale_bytes();
    const int64_t last = (end + format.block_size - 1) / format.block_size * format.scale_bytes();
    const int64_t blocks_per_unit = kUnitBytes / format.scale_bytes();
    float* target = values;
    for (int64_t byte = first; byte < last; byte += kUnitBytes) {
      for (int vector = 0; vector < kVectors; ++vector) {
        typename Isa::Ints dwords[4];
        load_unit<Isa>(rows.scales + vector * Isa::kLanes, byte, operands.scale_row_bytes(), dwords);
        for (int j = 0; j < 4; ++j)
          decode(format.format, dwords[j], target + (j * blocks_per_unit / 4 * kVectors + vector) * Isa::kLanes);
      }
      target += blocks_per_unit * kVectors * Isa::kLanes;
    }
  }

  // Scale vectors of the block that holds `column` of the part.
  ONNX_MOE_INLINE inline const float* at(int64_t column) const {
    return values + (column >> block_shift) * kVectors * Isa::kLanes;
  }

 private:
  // The two or four scales in each lane of `dwords`.
  ONNX_MOE_INLINE static void decode(Format format, typename Isa::Ints dwords, float* target) {
    if (format == Format::kFp4) {
      Isa::store(target, Isa::low_half_to_float(dwords));
      Isa::store(target + kVectors * Isa::kLanes, Isa::high_half_to_float(dwords));
      return;
    }
    for (int byte = 0; byte < 4; ++byte) {
      const typename Isa::Words codes = (Isa::to_words(dwords) >> (8 * byte)) & 0xFFu;
      Isa::store(target + byte * kVectors * Isa::kLanes, ScaleDecoder<Isa>::from_bytes(format, codes));
    }
  }
};

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
                                       int64_t columns, Vector (&sum)[RowCount][kVectors],
                                       PanelFetch<Isa>& fetch) const {
    const float* x[RowCount];
    for (int m = 0; m < RowCount; ++m) x[m] = rows.values[first_row + m] + start;
    for (int64_t column = 0; column < columns; ++column) {
      if (column % kUnit == 0) fetch.fetch_some();
      Vector w[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = Isa::load(weights + (column * kVectors + v) * Isa::kLanes);
      for (int m = 0; m < RowCount; ++m) {
        const Vector value = Isa::broadcast(x[m] + column);
        for (int v = 0; v < kVectors; ++v) sum[m][v] = Isa::multiply_add(value, w[v], sum[m][v]);
      }
    }
  }
};

// Panels of integers: four columns of a weight row in a lane, in the order of packed_row.h, [dword][even, odd][vector].
template <typename Isa, int Limbs>
struct IntPanel {
  using Vector = typename Isa::Vector;
  using Ints = typename Isa::Ints;
  static constexpr int kVectors = Isa::kPanelVectors;
  static constexpr int64_t kColumns = 512;  // 16 KiB of 32 weight rows
  static constexpr int kMostRows = Isa::kIntRows;
  static constexpr int64_t kVectorBytes = 4 * Isa::kLanes;
  static constexpr bool kBiased = Isa::kWeightBias != 0;

  alignas(64) uint8_t weights[kColumns / 4 * kVectors * kVectorBytes];
  PanelScales<Isa, kColumns> scales;

  ONNX_MOE_INLINE inline void put(int64_t column, int vector, const typename Isa::Ints (&codes)[4]) {
    for (int dword = 0; dword < 4; ++dword) {
      uint8_t* target = weights + ((column / 4 + 2 * dword) * kVectors + vector) * kVectorBytes;
      Isa::store_ints(target, Isa::low_codes(codes[dword]));
      Isa::store_ints(target + kVectors * kVectorBytes, Isa::high_codes(codes[dword]));
    }
  }

  template <int RowCount>
  ONNX_MOE_INLINE inline void multiply(const Operands& operands, const Rows& rows, int64_t first_row, int64_t start,
                                       int64_t columns, Vector (&sum)[RowCount][kVectors],
                                       PanelFetch<Isa>& fetch) const {
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
                                              PanelFetch<Isa>& fetch) const {
    using Chunk = PackedChunk<Limbs>;
    for (int64_t column = 0; column < columns; column += GroupSize) {
      if (column % kUnit == 0) fetch.fetch_some();
      const int64_t position = start + column;
      const int64_t chunk = position / kChunk * Chunk::kBytes;
      const int64_t digits = chunk + position % kChunk / 2;
      Ints total[RowCount][kVectors];
      const auto start_of = [&](int m) { return packed[m] + group_starts + position / GroupSize * 4; };
      for (int m = 0; m < RowCount; ++m) {
        for (int v = 0; v < kVectors; ++v) {
          total[m][v] = kBiased && Limbs == 1 ? Isa::broadcast_dword(start_of(m)) : Isa::zero_ints();
        }
      }
      unroll<Limbs>([&](auto index) ONNX_MOE_INLINE {
        if constexpr (index > 0) {
          for (auto& row : total) {
            for (Ints& sum_of_row : row) sum_of_row = Isa::shift_limb(sum_of_row);
          }
        }
        const uint8_t* w = reload(weights + column / 4 * kVectors * kVectorBytes);
        unroll<GroupSize / 4>([&](auto quad) ONNX_MOE_INLINE {
          Ints codes[kVectors];
          for (int v = 0; v < kVectors; ++v) codes[v] = Isa::load_ints(w + (quad * kVectors + v) * kVectorBytes);
          constexpr int64_t kOffset = (Limbs - 1 - index) * kChunk + quad / 2 * 4 + quad % 2 * (kChunk / 2);
          for (int m = 0; m < RowCount; ++m) {
            const Ints x = Isa::broadcast_dword(packed[m] + digits + kOffset);
            for (int v = 0; v < kVectors; ++v) total[m][v] = Isa::dot(total[m][v], codes[v], x);
          }
        });
      });
      if constexpr (kBiased && Limbs > 1) {
        for (int m = 0; m < RowCount; ++m) {
          const Ints start_sum = Isa::broadcast_dword(start_of(m));
          for (int v = 0; v < kVectors; ++v) total[m][v] = Isa::add_ints(total[m][v], start_sum);
        }
      }
      const float* scale = scales.at(column);
      for (int m = 0; m < RowCount; ++m) {
        const uint8_t* x_scales = packed[m] + chunk + Chunk::kScales + position % kChunk / 2;
        const Vector x_scale = Isa::broadcast(reinterpret_cast<const float*>(x_scales));
        for (int v = 0; v < kVectors; ++v) {
          sum[m][v] = Isa::multiply_add(Isa::multiply(Isa::to_float(total[m][v]), x_scale),
                                        Isa::load(scale + v * Isa::kLanes), sum[m][v]);
        }
      }
    }
  }
};

template <typename Isa, typename Content>
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
      const PanelRows<Isa> panel = panel_rows(operands, tile, column, vectors_per_band);
      const int64_t row_blocks = (rows.count + Content::kMostRows - 1) / Content::kMostRows;
      PanelFetch<Isa> fetch(operands, panel, (operands.depth + kUnit - 1) / kUnit * (kVectors + row_blocks));
      for (int64_t start = 0; start < operands.depth; start += Content::kColumns) {
        const int64_t end = std::min(operands.depth, start + Content::kColumns);
        decode(operands, panel, start, end, content, fetch);
        multiply_part(operands, content, rows, start, end, targets, products.stride, fetch);
      }
    }
  }

 private:
  using Vector = typename Isa::Vector;
  static constexpr int kVectors = Isa::kPanelVectors;

  static PanelRows<Isa> panel_rows(const Operands& operands, const Fp4Tile& tile, int64_t column,
                                   int vectors_per_band) {
    PanelRows<Isa> rows;
    const int64_t panel_columns = vectors_per_band * Isa::kLanes;
    for (int v = 0; v < kVectors; ++v) {
      const WeightBand& band = tile.band[v / vectors_per_band];
      for (int lane = 0; lane < Isa::kLanes; ++lane) {
        // Beyond the last column: that column again, whose products nobody reads.
        const int64_t c = std::min(column + v % vectors_per_band * Isa::kLanes + lane, tile.columns - 1);
        const int64_t row = band.first + c * band.step;
        rows.codes[v * Isa::kLanes + lane] = tile.codes + row * operands.row_bytes();
        rows.scales[v * Isa::kLanes + lane] = tile.scales + row * operands.scale_row_bytes();
      }
    }
    const bool last = column + panel_columns >= tile.columns;
    rows.ahead = last ? 0 : panel_columns * tile.band[0].step * operands.row_bytes();
    rows.scales_ahead = last ? 0 : panel_columns * tile.band[0].step * operands.scale_row_bytes();
    if (last && tile.next) {
      const int64_t to_first = (tile.next->band[0].first - tile.band[0].first - column * tile.band[0].step);
      rows.ahead = tile.next->codes - tile.codes + to_first * operands.row_bytes();
      rows.scales_ahead = tile.next->scales - tile.scales + to_first * operands.scale_row_bytes();
    }
    return rows;
  }

  ONNX_MOE_NOINLINE static void decode(const Operands& operands, const PanelRows<Isa>& rows, int64_t start, int64_t end,
                                       Content& content, PanelFetch<Isa>& fetch) {
    content.scales.load(operands, rows, start, end);
    for (int64_t column = start; column < end; column += kUnit) {
      for (int vector = 0; vector < kVectors; ++vector) {
        fetch.fetch_some();
        typename Isa::Ints codes[4];
        load_unit<Isa>(rows.codes + vector * Isa::kLanes, column / 2, operands.row_bytes(), codes);
        content.put(column - start, vector, codes);
      }
    }
  }

  // All rows in blocks of nearly equal size, so that none is left with one row.
  ONNX_MOE_INLINE static void multiply_part(const Operands& operands, const Content& content, const Rows& rows,
                                            int64_t start, int64_t end, float* const (&targets)[kVectors],
                                            int64_t stride, PanelFetch<Isa>& fetch) {
    const int64_t blocks = (rows.count + Content::kMostRows - 1) / Content::kMostRows;
    for (int64_t block = 0, row = 0; block < blocks; ++block) {
      const int64_t count = (rows.count - row) / (blocks - block);
      with_constant<Content::kMostRows>(count, [&](auto constant) {
        multiply_block<decltype(constant)::value>(operands, content, rows, row, start, end, targets, stride, fetch);
      });
      row += count;
    }
  }

  template <int RowCount>
  ONNX_MOE_NOINLINE static void multiply_block(const Operands& operands, const Content& content, const Rows& rows,
                                               int64_t first_row, int64_t start, int64_t end,
                                               float* const (&targets)[kVectors], int64_t stride,
                                               PanelFetch<Isa>& fetch) {
    Vector sum[RowCount][kVectors];
    for (int m = 0; m < RowCount; ++m) {
      for (int v = 0; v < kVectors; ++v) sum[m][v] = Isa::zero();
    }
    content.template multiply<RowCount>(operands, rows, first_row, start, end - start, sum, fetch);
    for (int m = 0; m < RowCount; ++m) {
      for (int v = 0; v < kVectors; ++v) {
        // A part is summed by itself: one sum over all columns would gather rounding errors.
        float* target = targets[v] + (first_row + m) * stride;
        Isa::store(target, start == 0 ? sum[m][v] : Isa::add(Isa::load(target), sum[m][v]));
      }
    }
  }
};

}  // namespace
}  // namespace onnx_moe
