// Products with plain weights: the router's matrix.
#pragma once

#include <algorithm>

#include "kernels/vector/elementwise.h"

namespace onnx_moe {
namespace {

template <typename Isa>
class PlainProducts {
 public:
  static void multiply(const PlainTile& tile, const float* const* rows, int64_t count, const Products& products) {
    alignas(64) float buffer[kWeightRows * kPartColumns];
    for (int64_t start = 0; start < tile.depth; start += kPartColumns) {
      const int64_t columns = std::min(kPartColumns, tile.depth - start);
      int64_t c = 0;
      for (; c + kWeightRows <= tile.columns; c += kWeightRows) {
        const Part part = load_part<kWeightRows>(tile, tile.first + c, start, columns, buffer);
        multiply_part<kWeightRows>(part, rows, count, start, {products.data + c, products.stride, 0});
      }
      for (; c < tile.columns; ++c) {
        const Part part = load_part<1>(tile, tile.first + c, start, columns, buffer);
        multiply_part<1>(part, rows, count, start, {products.data + c, products.stride, 0});
      }
    }
  }

 private:
  using Vector = typename Isa::Vector;
  // Weight rows in flight: independent sums that hide the latency of a multiply-add.
  static constexpr int kWeightRows = 4;
  static constexpr int64_t kPartColumns = 1024;  // four rows of 4 KiB leave half of a 32 KiB L1 to the activations

  // Part of up to kWeightRows weight rows as floats: `columns` padded to whole vectors.
  struct Part {
    const float* rows[kWeightRows];
    int64_t columns;
  };

  // Weights are read where they lie, if they are floats and whole vectors; widened otherwise.
  template <int WeightRows>
  static Part load_part(const PlainTile& tile, int64_t weight_row, int64_t start, int64_t columns, float* buffer) {
    Part part{{}, (columns + Isa::kLanes - 1) / Isa::kLanes * Isa::kLanes};
    for (int r = 0; r < WeightRows; ++r) {
      const int64_t offset = (weight_row + r) * tile.depth + start;
      if (tile.type == ElementType::kFloat && part.columns == columns) {
        part.rows[r] = static_cast<const float*>(tile.weights) + offset;
        continue;
      }
      float* target = buffer + r * kPartColumns;
      widen<Isa>(tile.type, element_at(tile.type, tile.weights, offset), columns, target);
      std::fill(target + columns, target + part.columns, 0.0f);
      part.rows[r] = target;
    }
    return part;
  }

  // All rows against one part, in blocks of nearly equal size so that none is left with one row.
  template <int WeightRows>
  static void multiply_part(const Part& part, const float* const* rows, int64_t count, int64_t start,
                            const Products& products) {
    const int64_t blocks = (count + Isa::kPlainRows - 1) / Isa::kPlainRows;
    for (int64_t block = 0, row = 0; block < blocks; ++block) {
      const int64_t block_rows = (count - row) / (blocks - block);
      with_constant<Isa::kPlainRows>(block_rows, [&](auto constant) {
        multiply_block<decltype(constant)::value, WeightRows>(part, rows + row, start,
                                                              products.data + row * products.stride, products.stride);
      });
      row += block_rows;
    }
  }

  // Products of RowCount rows and WeightRows weight rows; added to y unless it is the first part.
  template <int RowCount, int WeightRows>
  static void multiply_block(const Part& part, const float* const* rows, int64_t start, float* y, int64_t stride) {
    Vector sum[RowCount][WeightRows];
    for (auto& row : sum) std::fill(std::begin(row), std::end(row), Isa::zero());
    for (int64_t column = 0; column < part.columns; column += Isa::kLanes) {
      Vector weights[WeightRows];
      for (int r = 0; r < WeightRows; ++r) weights[r] = Isa::load(part.rows[r] + column);
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
      for (int r = 0; r < WeightRows; ++r) y[m * stride + r] = start == 0 ? sums[r] : y[m * stride + r] + sums[r];
    }
  }
};

}  // namespace
}  // namespace onnx_moe
