// The vectorised kernel, one template for every instruction set. A file of its own compiles it with that set's flags
// and hands it an `Isa`: a vector of kLanes floats and a dozen primitives. Everything here is in an unnamed
// namespace, so that no function compiled for one instruction set can be linked into the code of another.
//
// FP4 codes are read as dwords, one a lane: lane i of a load of 4·kLanes bytes holds columns 8i … 8i+7 of a chunk of
// 8·kLanes. Nibble j of every lane is decoded by one shuffle, so a vector of weights is the columns 8i + j; `pack`
// writes the activations in that order. A lane never straddles two blocks (blocks are multiples of 8), so the scales
// of a chunk are one vector.
//
// Two paths, chosen by the row count alone: few rows (decode) multiply the codes as they are and scale each chunk's
// sum; more rows decode a panel of four weight rows into the L1 cache once and multiply it with all rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/kernel.h"

#define ONNX_MOE_INLINE __attribute__((always_inline))

namespace onnx_moe {
namespace {

// Rows that the decode path takes. At three the panel's decode is already paid for.
constexpr int kFewRows = 2;
// Weight rows in flight: independent sums that hide the latency of a multiply-add.
constexpr int kWeightRows = 4;
// Columns of a panel: four rows of 4 KiB leave half of a 32 KiB L1 to the activations.
constexpr int64_t kPanelColumns = 1024;
constexpr int64_t kSmallestBlock = 16;
// Bytes ahead of the reader that are fetched into the cache: of 1, 2, 4, 8, 16 and 32 KiB, 8 read memory fastest.
constexpr int64_t kPrefetchBytes = 8192;

template <typename Body, int... I>
ONNX_MOE_INLINE inline void unroll_sequence(Body& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}

template <int Count, typename Body>
ONNX_MOE_INLINE inline void unroll(Body&& body) {
  unroll_sequence(body, std::make_integer_sequence<int, Count>{});
}

// ---- elementwise: plain loops that the compiler vectorises ----------------------------------------------------

// e^x to 2 units in the last place on [-87, 88], clamped outside (NaN stays): x = n·ln 2 + r, Taylor in r.
ONNX_MOE_INLINE inline float exp_clamped(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer, in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * float_from_bits((bits_from_float(shifted) << 23) + 0x3F800000u);
}

template <Function F>
ONNX_MOE_INLINE inline float apply(float alpha, float g) {
  if constexpr (F == Function::kSilu) return g / (1.0f + exp_clamped(-alpha * g));
  if constexpr (F == Function::kGelu) return 0.5f * g * (1.0f + std::erf(g * 0.70710678f));
  if constexpr (F == Function::kGeluTanh) {  // ½(1 + tanh u) = σ(2u)
    return g / (1.0f + exp_clamped(-1.59576912f * (g + 0.044715f * g * g * g)));
  }
  if constexpr (F == Function::kRelu) return g < 0.0f ? 0.0f : g;
  if constexpr (F == Function::kRelu2) return g < 0.0f ? 0.0f : g * g;
  return g;
}

template <int Step>
ONNX_MOE_INLINE inline float scaled(const float* values, float scale, const float* bias, int64_t i) {
  return bias ? values[i * Step] * scale + bias[i * Step] : values[i * Step] * scale;
}

template <Function F, bool Gated, int Step>
void finish_row(const Epilogue& epilogue, float* y) {
  const Epilogue e = epilogue;
  const float alpha = e.activation->alpha;
  const float beta = e.activation->beta;
  const float limit = e.activation->limit > 0.0f ? e.activation->limit : HUGE_VALF;
  for (int64_t i = 0; i < e.columns; ++i) {
    float gate = scaled<Step>(e.gate, e.gate_scale, e.gate_bias, i);
    if constexpr (Gated) {
      float up = scaled<Step>(e.up, e.up_scale, e.up_bias, i);
      gate = gate > limit ? limit : gate;
      up = up > limit ? limit : up;
      up = up < -limit ? -limit : up;
      y[i] = apply<F>(alpha, gate) * (up + beta);
    } else {
      y[i] = apply<F>(alpha, gate);
    }
  }
}

template <Function F>
void finish_function(const Epilogue& epilogue, float* y) {
  if (!epilogue.activation->gated) return finish_row<F, false, 1>(epilogue, y);
  if (epilogue.step == 2) return finish_row<F, true, 2>(epilogue, y);
  finish_row<F, true, 1>(epilogue, y);
}

void finish(const Epilogue& epilogue, float* y) {
  switch (epilogue.activation->function) {
    case Function::kNone:
      return finish_function<Function::kNone>(epilogue, y);
    case Function::kSilu:
      return finish_function<Function::kSilu>(epilogue, y);
    case Function::kGelu:
      return finish_function<Function::kGelu>(epilogue, y);
    case Function::kGeluTanh:
      return finish_function<Function::kGeluTanh>(epilogue, y);
    case Function::kRelu:
      return finish_function<Function::kRelu>(epilogue, y);
    case Function::kRelu2:
      return finish_function<Function::kRelu2>(epilogue, y);
  }
}

void accumulate(float weight, const float* x, int64_t count, bool first, float* y) {
  if (first) {
    for (int64_t i = 0; i < count; ++i) y[i] = weight * x[i];
  } else {
    for (int64_t i = 0; i < count; ++i) y[i] += weight * x[i];
  }
}

// ---- the kernel ------------------------------------------------------------------------------------------------

template <typename Isa>
struct VectorKernel {
  using Vector = typename Isa::Vector;
  using Codes = typename Isa::Codes;
  using Words = typename Isa::Words;
  static constexpr int kLanes = Isa::kLanes;
  static constexpr int64_t kChunk = 8 * kLanes;
  static constexpr int64_t kChunkBytes = 4 * kLanes;

  // float_from_e8m0 and float_from_e4m3 (core/fp4.h) on a vector of dwords: the compiler, left to vectorise a loop
  // over a row's 32 or 64 scales, leaves a scalar rest that costs more than the scales.
  ONNX_MOE_INLINE static Words floats_from_e8m0(Words codes) {
    const Words bits = codes << 23;
    return (bits < 0x00400000u ? 0x00400000u : bits) | (Words(codes == 255u) & 0x00400000u);
  }

  ONNX_MOE_INLINE static Words floats_from_e4m3(Words codes) {
    const Words magnitude = codes & 0x7Fu;
    const Words shifted = magnitude << 20;
    const Words subnormal = (Words)((typename Isa::Floats)(shifted + (121u << 23)) - 0x1p-6f);
    const Words normal = (shifted + (120u << 23)) | (Words(magnitude == 0x7Fu) & 0x7FC00000u);
    return (magnitude < 8u ? subnormal : normal) | (codes & 0x80u) << 24;
  }

  static int64_t packed_size(int64_t depth) { return (depth + kChunk - 1) / kChunk * kChunk; }

  static void pack(const float* row, int64_t depth, float* packed) {
    int64_t start = 0;
    for (; start + kChunk <= depth; start += kChunk) Isa::transpose_8(row + start, packed + start);
    if (start == depth) return;
    alignas(64) float last[kChunk] = {};
    std::copy(row + start, row + depth, last);
    Isa::transpose_8(last, packed + start);
  }

  static void widen(ElementType type, const void* source, int64_t count, float* target) {
    if (type == ElementType::kFloat) {
      std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
      return;
    }
    const auto* bits = static_cast<const uint16_t*>(source);
    int64_t i = 0;
    if (type == ElementType::kFloat16) {
      for (; i + kLanes <= count; i += kLanes) Isa::store(target + i, Isa::load_half(bits + i));
      for (; i < count; ++i) target[i] = float_from_float16(bits[i]);
    } else {
      for (; i < count; ++i) target[i] = float_from_bfloat16(bits[i]);
    }
  }

  static void narrow(ElementType type, const float* source, int64_t count, void* target) {
    if (type == ElementType::kFloat) {
      std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
      return;
    }
    auto* bits = static_cast<uint16_t*>(target);
    int64_t i = 0;
    if (type == ElementType::kFloat16) {
      for (; i + kLanes <= count; i += kLanes) Isa::store_half(bits + i, Isa::load(source + i));
      for (; i < count; ++i) bits[i] = float16_from_float(source[i]);
    } else {
      for (; i < count; ++i) bits[i] = bfloat16_from_float(source[i]);
    }
  }

  // Block scales of part of a weight row as floats, followed by a vector of zeros for the end of the last chunk.
  struct RowScales {
    alignas(64) float values[kPanelColumns / kSmallestBlock + 2 * kLanes];

    ONNX_MOE_INLINE inline void load(const Fp4Tile& tile, int64_t weight_row, int64_t column, int64_t columns) {
      const int block_shift = __builtin_ctzll(static_cast<uint64_t>(tile.format.block_size));
      const int64_t first = weight_row * (tile.depth >> block_shift) + (column >> block_shift);
      const int64_t count = columns >> block_shift;
      if (tile.format.format == Format::kFp4) {
        widen(ElementType::kFloat16, static_cast<const uint16_t*>(tile.scales) + first, count, values);
      } else if (tile.format.format == Format::kMxfp4) {
        decode<floats_from_e8m0>(static_cast<const uint8_t*>(tile.scales) + first, count);
      } else {
        decode<floats_from_e4m3>(static_cast<const uint8_t*>(tile.scales) + first, count);
      }
      std::memset(values + count, 0, kLanes * sizeof(float));
    }

   private:
    template <Words (*FloatsFromCodes)(Words)>
    ONNX_MOE_INLINE inline void store_words(const uint8_t* codes, int64_t index) {
      const Words floats = FloatsFromCodes(Isa::load_bytes(codes));
      std::memcpy(values + index, &floats, sizeof floats);
    }

    template <Words (*FloatsFromCodes)(Words)>
    ONNX_MOE_INLINE inline void decode(const uint8_t* codes, int64_t count) {
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store_words<FloatsFromCodes>(codes + i, i);
      if (i == count) return;
      uint8_t last[kLanes] = {};
      std::memcpy(last, codes + i, static_cast<size_t>(count - i));
      store_words<FloatsFromCodes>(last, i);
    }
  };

  // Turns the scales of a chunk's blocks into one vector, a lane's scale in each lane.
  struct ScaleSpread {
    typename Isa::Index index;
    int block_shift;  // blocks are powers of two; a division here would cost more than decoding the chunk

    explicit ScaleSpread(int64_t block_size)
        : index(Isa::index_of_lanes(block_size)), block_shift(__builtin_ctzll(static_cast<uint64_t>(block_size))) {}
    ONNX_MOE_INLINE Vector operator()(const RowScales& scales, int64_t column_in_panel) const {
      return Isa::permute(Isa::load(scales.values + (column_in_panel >> block_shift)), index);
    }
  };

  // The codes of a last, incomplete chunk; zeros behind them.
  static Codes load_last_codes(const uint8_t* codes, int64_t columns) {
    alignas(64) uint8_t last[kChunkBytes] = {};
    std::memcpy(last, codes, static_cast<size_t>(columns / 2));
    return Isa::load_codes(last);
  }

  // ---- few rows: the codes go straight into the products ----

  template <int RowCount, int WeightRows>
  static void multiply_few(const Fp4Tile& tile, const float* const* rows, int64_t weight_row, float* y,
                           int64_t stride) {
    const ScaleSpread spread(tile.format.block_size);
    const int64_t row_bytes = tile.depth / 2;
    const uint8_t* codes = tile.codes + weight_row * row_bytes;
    Vector total[RowCount][WeightRows];
    for (auto& row : total) std::fill(std::begin(row), std::end(row), Isa::zero());
    for (int64_t panel = 0; panel < tile.depth; panel += kPanelColumns) {
      const int64_t columns = std::min(kPanelColumns, tile.depth - panel);
      RowScales scales[WeightRows];
      for (int r = 0; r < WeightRows; ++r) scales[r].load(tile, weight_row + r, panel, columns);
      const float* x[RowCount];
      for (int m = 0; m < RowCount; ++m) x[m] = rows[m] + panel;
      const uint8_t* source = codes + panel / 2;
      Codes chunk[WeightRows];
      int64_t column = 0;
      for (; column + kChunk <= columns; column += kChunk, source += kChunkBytes) {
        for (int r = 0; r < WeightRows; ++r) {
          __builtin_prefetch(source + r * row_bytes + kPrefetchBytes);
          chunk[r] = Isa::load_codes(source + r * row_bytes);
        }
        add_chunk<RowCount, WeightRows>(x, chunk, scales, spread, column, total);
      }
      if (column == columns) continue;
      for (int r = 0; r < WeightRows; ++r) chunk[r] = load_last_codes(source + r * row_bytes, columns - column);
      add_chunk<RowCount, WeightRows>(x, chunk, scales, spread, column, total);
    }
    for (int m = 0; m < RowCount; ++m) {
      for (int r = 0; r < WeightRows; ++r) y[m * stride + r] = Isa::sum(total[m][r]);
    }
  }

  template <int RowCount, int WeightRows>
  ONNX_MOE_INLINE static void add_chunk(const float* const (&rows)[RowCount], const Codes (&chunk)[WeightRows],
                                        const RowScales (&scales)[WeightRows], const ScaleSpread& spread,
                                        int64_t column, Vector (&total)[RowCount][WeightRows]) {
    Vector sum[RowCount][WeightRows];
    unroll<8>([&](auto nibble) ONNX_MOE_INLINE {
      Vector x[RowCount];
      for (int m = 0; m < RowCount; ++m) x[m] = Isa::load(rows[m] + column + nibble * kLanes);
      for (int r = 0; r < WeightRows; ++r) {
        const Vector weights = Isa::template decode<nibble>(chunk[r]);
        for (int m = 0; m < RowCount; ++m) {
          sum[m][r] = nibble == 0 ? Isa::multiply(weights, x[m]) : Isa::multiply_add(weights, x[m], sum[m][r]);
        }
      }
    });
    for (int r = 0; r < WeightRows; ++r) {
      const Vector scale = spread(scales[r], column);
      for (int m = 0; m < RowCount; ++m) total[m][r] = Isa::multiply_add(sum[m][r], scale, total[m][r]);
    }
  }

  template <int RowCount>
  static void few_products(const Fp4Tile& tile, const float* const* rows, const Products& products) {
    int64_t column = 0;
    for (; column + kWeightRows <= tile.columns; column += kWeightRows) {
      multiply_few<RowCount, kWeightRows>(tile, rows, tile.first + column, products.data + column, products.stride);
    }
    for (; column < tile.columns; ++column) {
      multiply_few<RowCount, 1>(tile, rows, tile.first + column, products.data + column, products.stride);
    }
  }

  // ---- many rows: panels of plain floats ----

  // Part of up to kWeightRows weight rows as floats: `count` of them, `columns` padded to whole vectors.
  struct Panel {
    const float* rows[kWeightRows];
    int64_t columns;
  };

  ONNX_MOE_INLINE static void decode_chunk(const Codes& chunk, const Vector& scale, float* target) {
    unroll<8>([&](auto nibble) ONNX_MOE_INLINE {
      Isa::store(target + nibble * kLanes, Isa::multiply(Isa::template decode<nibble>(chunk), scale));
    });
  }

  // Decodes `columns` columns from `start` of WeightRows weight rows. All scales are made before the first is used:
  // a load that spans two stores still under way would wait for both.
  template <int WeightRows>
  static Panel decode_panel(const Fp4Tile& tile, int64_t weight_row, int64_t start, int64_t columns, float* buffer) {
    const ScaleSpread spread(tile.format.block_size);
    const int64_t row_bytes = tile.depth / 2;
    RowScales scales[WeightRows];
    for (int r = 0; r < WeightRows; ++r) scales[r].load(tile, weight_row + r, start, columns);
    Panel panel{{}, packed_size(columns)};
    for (int r = 0; r < WeightRows; ++r) {
      const uint8_t* codes = tile.codes + (weight_row + r) * row_bytes + start / 2;
      float* target = buffer + r * kPanelColumns;
      panel.rows[r] = target;
      int64_t column = 0;
      for (; column + kChunk <= columns; column += kChunk) {
        __builtin_prefetch(codes + column / 2 + kWeightRows * row_bytes);
        decode_chunk(Isa::load_codes(codes + column / 2), spread(scales[r], column), target + column);
      }
      if (column == columns) continue;
      decode_chunk(load_last_codes(codes + column / 2, columns - column), spread(scales[r], column), target + column);
    }
    return panel;
  }

  // Products of RowCount rows and WeightRows panel rows; added to y unless it is the first panel.
  template <int RowCount, int WeightRows>
  static void multiply_block(const Panel& panel, const float* const* rows, int64_t start, bool first, float* y,
                             int64_t stride) {
    Vector sum[RowCount][WeightRows];
    for (auto& row : sum) std::fill(std::begin(row), std::end(row), Isa::zero());
    for (int64_t column = 0; column < panel.columns; column += kLanes) {
      Vector weights[WeightRows];
      for (int r = 0; r < WeightRows; ++r) weights[r] = Isa::load(panel.rows[r] + column);
      for (int m = 0; m < RowCount; ++m) {
        const Vector x = Isa::load(rows[m] + start + column);
        for (int r = 0; r < WeightRows; ++r) sum[m][r] = Isa::multiply_add(weights[r], x, sum[m][r]);
      }
    }
    for (int m = 0; m < RowCount; ++m) {
      float sums[WeightRows];
      if constexpr (WeightRows == 4) {
        Isa::sum_4(sum[m], sums);
      } else {
        for (int r = 0; r < WeightRows; ++r) sums[r] = Isa::sum(sum[m][r]);
      }
      for (int r = 0; r < WeightRows; ++r) y[m * stride + r] = first ? sums[r] : y[m * stride + r] + sums[r];
    }
  }

  // All rows against one panel, in blocks of nearly equal size so that none is left with one row.
  template <int WeightRows>
  static void multiply_panel(const Panel& panel, const Rows& rows, int64_t start, const Products& products) {
    const int64_t blocks = (rows.count + Isa::kRowBlock - 1) / Isa::kRowBlock;
    for (int64_t block = 0, row = 0; block < blocks; ++block) {
      const int64_t count = (rows.count - row) / (blocks - block);
      unroll<Isa::kRowBlock>([&](auto index) {
        constexpr int kCount = index + 1;
        if (count != kCount) return;
        multiply_block<kCount, WeightRows>(panel, rows.data + row, start, start == 0,
                                           products.data + row * products.stride, products.stride);
      });
      row += count;
    }
  }

  template <int WeightRows>
  static Panel make_panel(const Fp4Tile& tile, int64_t weight_row, int64_t start, int64_t columns, float* buffer) {
    return decode_panel<WeightRows>(tile, weight_row, start, columns, buffer);
  }

  // Plain weights are read where they lie, if they are floats and whole vectors; widened otherwise.
  template <int WeightRows>
  static Panel make_panel(const PlainTile& tile, int64_t weight_row, int64_t start, int64_t columns, float* buffer) {
    Panel panel{{}, (columns + kLanes - 1) / kLanes * kLanes};
    for (int r = 0; r < WeightRows; ++r) {
      const int64_t offset = (weight_row + r) * tile.depth + start;
      if (tile.type == ElementType::kFloat && panel.columns == columns) {
        panel.rows[r] = static_cast<const float*>(tile.weights) + offset;
        continue;
      }
      float* target = buffer + r * kPanelColumns;
      widen(tile.type, element_at(tile.type, tile.weights, offset), columns, target);
      std::fill(target + columns, target + panel.columns, 0.0f);
      panel.rows[r] = target;
    }
    return panel;
  }

  template <typename Tile>
  static void panel_products(const Tile& tile, const Rows& rows, const Products& products) {
    alignas(64) float buffer[kWeightRows * kPanelColumns];
    for (int64_t start = 0; start < tile.depth; start += kPanelColumns) {
      const int64_t columns = std::min(kPanelColumns, tile.depth - start);
      int64_t c = 0;
      for (; c + kWeightRows <= tile.columns; c += kWeightRows) {
        const Panel panel = make_panel<kWeightRows>(tile, tile.first + c, start, columns, buffer);
        multiply_panel<kWeightRows>(panel, rows, start, {products.data + c, products.stride});
      }
      for (; c < tile.columns; ++c) {
        const Panel panel = make_panel<1>(tile, tile.first + c, start, columns, buffer);
        multiply_panel<1>(panel, rows, start, {products.data + c, products.stride});
      }
    }
  }

  static void fp4_products(const Fp4Tile& tile, const Rows& rows, const Products& products) {
    static_assert(kFewRows == 2, "one branch for each small row count");
    if (rows.count == 1) return few_products<1>(tile, rows.data, products);
    if (rows.count == 2) return few_products<2>(tile, rows.data, products);
    panel_products(tile, rows, products);
  }

  static void plain_products(const PlainTile& tile, const Rows& rows, const Products& products) {
    panel_products(tile, rows, products);
  }

  static constexpr Kernel make(const char* name, bool (*supported)()) {
    return {name, supported, packed_size, pack, fp4_products, plain_products, finish, accumulate, widen, narrow};
  }
};

}  // namespace
}  // namespace onnx_moe
