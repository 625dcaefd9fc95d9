// Where the panels of panel.h come from: weights row by row (RowSource) or interleaved (GroupSource). A source delivers
// the codes of 32 columns and the block scales with a lane for each weight row, and says which runs of memory the panel
// to come will be read from.
#pragma once

#include <algorithm>

#include "kernels/vector/packed_row.h"
#include "kernels/vector/scales.h"

namespace onnx_moe {
namespace {

// 16 bytes of each of a vector's weight rows are decoded at once: 32 columns.
constexpr int64_t kUnitBytes = 16;
constexpr int64_t kUnit = 2 * kUnitBytes;

// The runs of memory that a panel is read from, and how far behind them those of the next panel lie.
struct PanelRuns {
  const uint8_t* const* codes;
  const uint8_t* const* scales;
  int count;
  int64_t bytes;  // of a run
  int64_t scale_bytes;
  int64_t ahead;
  int64_t scales_ahead;
};

// Fetches the panel to come while the one at hand is decoded and multiplied, run by run, a few lines at a time: all at
// once, fetches fill the core's queue of misses and hold everything up behind them.
class PanelFetch {
 public:
  // `turns`: how often fetch_some will be called.
  PanelFetch(const PanelRuns& runs, int64_t turns)
      : runs_(runs), bytes_per_turn_((runs.bytes * runs.count / kCacheLine + turns - 1) / turns * kCacheLine) {}

  ONNX_MOE_INLINE inline void fetch_some() {
    if (run_ == runs_.count) return;
    const uint8_t* run = runs_.codes[run_] + runs_.ahead;
    for (int64_t i = 0; i < bytes_per_turn_; i += kCacheLine) __builtin_prefetch(run + byte_ + i, 0, kSecondCache);
    byte_ += bytes_per_turn_;
    if (byte_ >= runs_.bytes) next_run();
  }

 private:
  static constexpr int64_t kCacheLine = 64;
  static constexpr int kSecondCache = 2;

  void next_run() {
    for (int64_t byte = 0; byte < runs_.scale_bytes; byte += kCacheLine) {
      __builtin_prefetch(runs_.scales[run_] + runs_.scales_ahead + byte, 0, kSecondCache);
    }
    byte_ = 0;
    ++run_;
  }

  PanelRuns runs_;
  int64_t bytes_per_turn_;
  int run_ = 0;
  int64_t byte_ = 0;
};

// How far behind a panel, in weight rows and bytes, the next one begins: in this tile or in the next.
struct NextPanel {
  int64_t codes = 0;
  int64_t scales = 0;

  NextPanel(const Operands& operands, const Fp4Tile& tile, int64_t column, int64_t panel_columns) {
    const WeightBand& band = tile.band[0];
    int64_t rows = 0;
    if (column + panel_columns < tile.columns) {
      rows = panel_columns * band.step;
    } else if (tile.next) {
      codes = tile.next->codes - tile.codes;
      scales = tile.next->scales - tile.scales;
      rows = tile.next->band[0].first - band.first - column * band.step;
    }
    codes += rows * operands.row_bytes();
    scales += rows * operands.scale_row_bytes();
  }
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

// Weights row by row, transposed on the way: lane l of vector v is row [v · kLanes + l].
template <typename Isa>
class RowSource {
 public:
  RowSource(const Operands& operands, const Fp4Tile& tile, int64_t column, int vectors_per_band)
      : operands_(operands), next_(operands, tile, column, vectors_per_band * Isa::kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      const WeightBand& band = tile.band[v / vectors_per_band];
      for (int lane = 0; lane < Isa::kLanes; ++lane) {
        // Beyond the last column: that column again, whose products nobody reads.
        const int64_t c = std::min(column + v % vectors_per_band * Isa::kLanes + lane, tile.columns - 1);
        const int64_t row = band.first + c * band.step;
        codes_[v * Isa::kLanes + lane] = tile.codes + row * operands.row_bytes();
        scales_[v * Isa::kLanes + lane] = tile.scales + row * operands.scale_row_bytes();
      }
    }
  }

  PanelRuns runs() const {
    return {codes_,      scales_,     kVectors * Isa::kLanes, operands_.row_bytes(), operands_.scale_row_bytes(),
            next_.codes, next_.scales};
  }

  ONNX_MOE_INLINE inline void load_codes(int vector, int64_t column, typename Isa::Ints (&out)[4]) const {
    load_unit<Isa>(codes_ + vector * Isa::kLanes, column / 2, operands_.row_bytes(), out);
  }

  // Scales of the blocks that hold the columns start … end: vectors of values, [block][vector], and up to a unit more.
  ONNX_MOE_INLINE inline void load_block_scales(int64_t start, int64_t end, float* values) const {
    const BlockFormat& format = operands_.format;
    const int64_t first = start / format.block_size * format.scale_bytes();
    const int64_t last = (end + format.block_size - 1) / format.block_size * format.scale_bytes();
    const int64_t blocks_per_unit = kUnitBytes / format.scale_bytes();
    for (int64_t byte = first; byte < last; byte += kUnitBytes) {
      for (int vector = 0; vector < kVectors; ++vector) {
        typename Isa::Ints dwords[4];
        load_unit<Isa>(scales_ + vector * Isa::kLanes, byte, operands_.scale_row_bytes(), dwords);
        for (int j = 0; j < 4; ++j)
          decode(format.format, dwords[j], values + (j * blocks_per_unit / 4 * kVectors + vector) * Isa::kLanes);
      }
      values += blocks_per_unit * kVectors * Isa::kLanes;
    }
  }

 private:
  static constexpr int kVectors = Isa::kPanelVectors;

  // The two or four scales in each lane of `dwords`.
  ONNX_MOE_INLINE static void decode(Format format, typename Isa::Ints dwords, float* values) {
    if (format == Format::kFp4) {
      Isa::store(values, Isa::low_half_to_float(dwords));
      Isa::store(values + kVectors * Isa::kLanes, Isa::high_half_to_float(dwords));
      return;
    }
    for (int byte = 0; byte < 4; ++byte) {
      const typename Isa::Words codes = (Isa::to_words(dwords) >> (8 * byte)) & 0xFFu;
      Isa::store(values + byte * kVectors * Isa::kLanes, ScaleDecoder<Isa>::from_bytes(format, codes));
    }
  }

  const Operands& operands_;
  NextPanel next_;
  const uint8_t* codes_[kVectors * Isa::kLanes];
  const uint8_t* scales_[kVectors * Isa::kLanes];
};

// Interleaved weights: vectors as they lie, each of them part of a group.
template <typename Isa>
class GroupSource {
 public:
  GroupSource(const Operands& operands, const Fp4Tile& tile, int64_t column, int vectors_per_band)
      : operands_(operands), next_(operands, tile, column, vectors_per_band * Isa::kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      // Beyond the last column: the last vector again, whose products nobody reads.
      const int64_t c = std::min(column + v % vectors_per_band * Isa::kLanes, tile.columns - Isa::kLanes);
      const int64_t row = tile.band[v / vectors_per_band].first + c;
      const int64_t lane = row % kGroupRows;
      codes_[v] = tile.codes + (row - lane) * operands.row_bytes() + 4 * lane;
      scales_[v] = tile.scales + (row - lane) * operands.scale_row_bytes() + lane * operands.format.scale_bytes();
    }
  }

  PanelRuns runs() const {
    return {codes_,
            scales_,
            kVectors,
            operands_.row_bytes() * kGroupRows,
            operands_.scale_row_bytes() * kGroupRows,
            next_.codes,
            next_.scales};
  }

  ONNX_MOE_INLINE inline void load_codes(int vector, int64_t column, typename Isa::Ints (&out)[4]) const {
    const uint8_t* source = codes_[vector] + column / 8 * (4 * kGroupRows);
    for (int dword = 0; dword < 4; ++dword) {
      // Blocks of 16 columns may end in the middle of a unit.
      const bool inside = column + 8 * dword < operands_.depth;
      out[dword] = inside ? Isa::load_ints(source + dword * 4 * kGroupRows) : Isa::zero_ints();
    }
  }

  ONNX_MOE_INLINE inline void load_block_scales(int64_t start, int64_t end, float* values) const {
    const BlockFormat& format = operands_.format;
    const int64_t last = (end + format.block_size - 1) / format.block_size;
    for (int64_t block = start / format.block_size; block < last; ++block) {
      for (int vector = 0; vector < kVectors; ++vector, values += Isa::kLanes) {
        const uint8_t* source = scales_[vector] + block * (kGroupRows * format.scale_bytes());
        Isa::store(values, load_scales<Isa>(format.format, source));
      }
    }
  }

 private:
  static constexpr int kVectors = Isa::kPanelVectors;

  const Operands& operands_;
  NextPanel next_;
  const uint8_t* codes_[kVectors];
  const uint8_t* scales_[kVectors];
};

// Scales of part of a panel: a vector for each block and vector of rows.
template <typename Isa, int64_t MostColumns>
struct PanelScales {
  using Vector = typename Isa::Vector;
  static constexpr int kVectors = Isa::kPanelVectors;
  // Loads come in units of 16 bytes, which may reach beyond the part.
  alignas(64) float values[(MostColumns / 16 + 16) * kVectors * Isa::kLanes];
  int block_shift;

  template <typename Source>
  ONNX_MOE_INLINE inline void load(const Operands& operands, const Source& source, int64_t start, int64_t end) {
    block_shift = __builtin_ctzll(static_cast<uint64_t>(operands.format.block_size));
    source.load_block_scales(start, end, values);
  }

  // Scale vectors of the block that holds `column` of the part.
  ONNX_MOE_INLINE inline const float* at(int64_t column) const {
    return values + (column >> block_shift) * kVectors * Isa::kLanes;
  }
};

}  // namespace
}  // namespace onnx_moe
