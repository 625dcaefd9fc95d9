// Many activation rows by AMX: a part of a panel of 32 weight rows is decoded to bfloat16, a step of 32 columns at a
// time, while the tiles multiply the step before with up to 32 rows; further rows are multiplied with what is decoded
// then. Activations are as many bfloat16 limbs as the precision asks for, so that level 0 is as accurate as float32
// arithmetic.
#pragma once

#include <algorithm>

#include "kernels/x86_64/tile_block.h"

namespace onnx_moe {
namespace {

// Columns of a part: what is decoded of it and 32 rows of its activations stay in the first cache, and its sums, which
// wait in memory for the next part, are loaded and stored seldom enough.
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

  struct Part {
    int64_t start;
    int64_t end;
    int64_t rows;

    int64_t steps() const { return steps_of(end - start); }
  };

  static void multiply_part(const Operands& operands, const Fp4Tile& tile, const Part& part,
                            const Activations& activations, Panel& panel, TileShapes& shapes,
                            const Products& products) {
    const int vectors_per_band = Panel::kVectors / tile.bands;
    const int64_t panel_columns = vectors_per_band * kTileRows;
    for (int64_t column = 0; column < tile.columns; column += panel_columns) {
      BlockSums sums{{}, products.stride, part.start == 0};
      for (int v = 0; v < Panel::kVectors; ++v) {
        sums.data[v] =
            products.data + v / vectors_per_band * products.band_stride + column + v % vectors_per_band * kTileRows;
      }
      const Source source(operands, tile, column, vectors_per_band);
      PanelFetch fetch(part_runs(operands, source.runs(), part), part.steps() * Panel::kVectors);
      panel.begin(operands, source, part.start, part.end, part.rows > DoubleBlock<Limbs>::kMostRows);
      multiply_rows(part, activations, panel, shapes, sums,
                    [&](int64_t step) ONNX_MOE_INLINE { panel.decode_step(source, step, fetch); });
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

  // Blocks of nearly equal size; the first one decodes the panel.
  template <typename DecodeStep>
  static void multiply_rows(const Part& part, const Activations& activations, const Panel& panel, TileShapes& shapes,
                            BlockSums sums, const DecodeStep& decode_step) {
    const auto nothing = [](int64_t) {};
    const int64_t blocks = (part.rows + DoubleBlock<Limbs>::kMostRows - 1) / DoubleBlock<Limbs>::kMostRows;
    for (int64_t block = 0, row = 0; block < blocks; ++block) {
      const RowBlock rows{row, (part.rows - row) / (blocks - block)};
      if (block == 0) {
        multiply_block(part, activations, rows, panel, shapes, sums, decode_step);
      } else {
        multiply_block(part, activations, rows, panel, shapes, sums, nothing);
      }
      row += rows.count;
      for (float*& data : sums.data) data += rows.count * sums.stride;
    }
  }

  struct RowBlock {
    int64_t first;
    int64_t count;
  };

  template <typename DecodeStep>
  static void multiply_block(const Part& part, const Activations& activations, const RowBlock& rows, const Panel& panel,
                             TileShapes& shapes, const BlockSums& sums, const DecodeStep& decode_step) {
    if (rows.count > kTileRows) {
      multiply_block<DoubleBlock<Limbs>>(part, activations, rows, panel, shapes, sums, decode_step);
    } else {
      multiply_block<SingleBlock<Limbs>>(part, activations, rows, panel, shapes, sums, decode_step);
    }
  }

  template <typename Block, typename DecodeStep>
  ONNX_MOE_NOINLINE static void multiply_block(const Part& part, const Activations& activations, const RowBlock& rows,
                                               const Panel& panel, TileShapes& shapes, const BlockSums& sums,
                                               const DecodeStep& decode_step) {
    const int64_t steps = part.steps();
    Block::set_shapes(shapes, rows.count);
    decode_step(0);
    Block::start();
    for (int64_t step = 0; step < steps; ++step) {
      if (step + 1 < steps) decode_step(step + 1);
      Block::add(panel, activations, step, rows.first);
    }
    Block::finish(sums, rows.count);
  }
};

}  // namespace
}  // namespace onnx_moe
