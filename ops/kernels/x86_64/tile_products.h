// Many activation rows by AMX: a part of a panel of 32 weight rows is decoded to bfloat16 and multiplied with a part of
// all rows, 32 × 32 sums at a time. Activations are as many bfloat16 limbs as the precision asks for, so that level 0
// is as accurate as float32 arithmetic; products of limbs that lie below a float's last bit are left out.
#pragma once

#include <algorithm>

#include "kernels/vector/panel.h"
#include "kernels/x86_64/bfloat_panel.h"

namespace onnx_moe {
namespace {

// Columns of a part: its rows and weights stay in the first two caches, and its sums, which wait in memory for the next
// part, are loaded and stored seldom enough.
constexpr int64_t part_columns(int limbs) { return limbs == 3 ? 256 : 512; }

template <template <typename> typename SourceOf, Format kFormat, int Limbs>
class TileProducts {
 public:
  // `packed`: rows as pack_bfloat_row made them.
  static void multiply(const Operands& operands, const Fp4Tile& tile, const uint8_t* const* packed, int64_t rows,
                       const Products& products) {
    TileShapes shapes;
    Activations activations;
    Panel panel;
    const int64_t sets = (rows + Activations::kMostRows - 1) / Activations::kMostRows;
    for (int64_t set = 0, first = 0; set < sets; ++set) {
      const int64_t count = (rows - first) / (sets - set);
      for (int64_t start = 0; start < operands.depth; start += kColumns) {
        const Part part{start, std::min(operands.depth, start + kColumns), count};
        activations.gather(operands, packed + first, count, part.start, part.end);
        multiply_part(operands, tile, part, activations, panel, shapes,
                      {products.data + first * products.stride, products.stride, products.band_stride});
      }
      first += count;
    }
  }

 private:
  using Source = SourceOf<Avx512>;
  static constexpr int64_t kColumns = part_columns(Limbs);
  using Activations = GatheredRows<Limbs, kColumns>;
  using Panel = BfloatPanel<kFormat, kColumns>;
  static constexpr int64_t kBlockRows = 2 * kTileRows;

  struct Part {
    int64_t start;
    int64_t end;
    int64_t rows;
  };

  // Where the sums of a block of rows are, for both tiles of weight rows.
  struct Sums {
    float* data[Panel::kVectors];
    int64_t stride;  // floats
  };

  static void multiply_part(const Operands& operands, const Fp4Tile& tile, const Part& part,
                            const Activations& activations, Panel& panel, TileShapes& shapes,
                            const Products& products) {
    const int vectors_per_band = Panel::kVectors / tile.bands;
    const int64_t panel_columns = vectors_per_band * kTileRows;
    for (int64_t column = 0; column < tile.columns; column += panel_columns) {
      Sums sums{{}, products.stride};
      for (int v = 0; v < Panel::kVectors; ++v) {
        sums.data[v] =
            products.data + v / vectors_per_band * products.band_stride + column + v % vectors_per_band * kTileRows;
      }
      const Source source(operands, tile, column, vectors_per_band);
      PanelFetch fetch(part_runs(operands, source.runs(), part), steps_of(part.end - part.start) * Panel::kVectors);
      panel.decode(operands, source, part.start, part.end, fetch);
      multiply_rows(part, activations, panel, shapes, sums);
    }
  }

  // The same part of the panel to come.
  static PanelRuns part_runs(const Operands& operands, PanelRuns runs, const Part& part) {
    const int64_t run_rows = runs.bytes / operands.row_bytes();
    const auto scale_offset = [&](int64_t column) {
      return column / operands.format.block_size * operands.format.scale_bytes() * run_rows;
    };
    runs.ahead += part.start / 2 * run_rows;
    runs.scales_ahead += scale_offset(part.start);
    runs.bytes = (part.end - part.start) / 2 * run_rows;
    runs.scale_bytes = scale_offset(part.end) - scale_offset(part.start);
    return runs;
  }

  static void multiply_rows(const Part& part, const Activations& activations, const Panel& panel, TileShapes& shapes,
                            const Sums& sums) {
    const int64_t blocks = (part.rows + kBlockRows - 1) / kBlockRows;
    for (int64_t block = 0, row = 0; block < blocks; ++block) {
      const int64_t count = (part.rows - row) / (blocks - block);
      shapes.set(count);
      Sums block_sums = sums;
      for (float*& data : block_sums.data) data += row * sums.stride;
      if (count > kTileRows) {
        multiply_block<true>(part, activations, row, panel, block_sums);
      } else {
        multiply_block<false>(part, activations, row, panel, block_sums);
      }
      row += count;
    }
  }

  template <bool kTwo>
  ONNX_MOE_NOINLINE static void multiply_block(const Part& part, const Activations& activations, int64_t row,
                                               const Panel& panel, const Sums& sums) {
    if (part.start == 0) {
      zero<kTwo>();
    } else {
      load<kTwo>(sums);
    }
    const int64_t steps = steps_of(part.end - part.start);
    for (int64_t step = 0; step < steps; ++step) {
      unroll<Panel::kLimbs>([&](auto weight_limb) ONNX_MOE_INLINE {
        load_tile<kWeights0>(panel.tile(step, weight_limb, 0), kTileRowBytes);
        load_tile<kWeights1>(panel.tile(step, weight_limb, 1), kTileRowBytes);
        unroll<Limbs>([&](auto limb) ONNX_MOE_INLINE {
          if constexpr (limb + weight_limb < 3) add_products<kTwo>(activations, step, limb, row);
        });
      });
    }
    store<kTwo>(sums);
  }

  template <bool kTwo>
  ONNX_MOE_INLINE static void add_products(const Activations& activations, int64_t step, int limb, int64_t row) {
    load_tile<kRows0>(activations.tile(step, limb, row), kTileRowBytes);
    if constexpr (kTwo) load_tile<kRows1>(activations.tile(step, limb, row + kTileRows), kTileRowBytes);
    multiply_tiles<kSum00, kRows0, kWeights0>();
    multiply_tiles<kSum01, kRows0, kWeights1>();
    if constexpr (kTwo) {
      multiply_tiles<kSum10, kRows1, kWeights0>();
      multiply_tiles<kSum11, kRows1, kWeights1>();
    }
  }

  template <bool kTwo>
  ONNX_MOE_INLINE static void zero() {
    zero_tile<kSum00>();
    zero_tile<kSum01>();
    if constexpr (kTwo) {
      zero_tile<kSum10>();
      zero_tile<kSum11>();
    }
  }

  template <bool kTwo>
  ONNX_MOE_INLINE static void load(const Sums& sums) {
    const int64_t bytes = sums.stride * static_cast<int64_t>(sizeof(float));
    load_tile<kSum00>(sums.data[0], bytes);
    load_tile<kSum01>(sums.data[1], bytes);
    if constexpr (kTwo) {
      load_tile<kSum10>(sums.data[0] + kTileRows * sums.stride, bytes);
      load_tile<kSum11>(sums.data[1] + kTileRows * sums.stride, bytes);
    }
  }

  template <bool kTwo>
  ONNX_MOE_INLINE static void store(const Sums& sums) {
    const int64_t bytes = sums.stride * static_cast<int64_t>(sizeof(float));
    store_tile<kSum00>(sums.data[0], bytes);
    store_tile<kSum01>(sums.data[1], bytes);
    if constexpr (kTwo) {
      store_tile<kSum10>(sums.data[0] + kTileRows * sums.stride, bytes);
      store_tile<kSum11>(sums.data[1] + kTileRows * sums.stride, bytes);
    }
  }
};

}  // namespace
}  // namespace onnx_moe
