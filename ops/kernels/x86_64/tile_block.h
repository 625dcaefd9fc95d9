// Up to 32 activation rows times a part of a panel: how the eight tile registers are used.
#pragma once

#include "kernels/x86_64/bfloat_panel.h"

namespace onnx_moe {
namespace {

// Products of limbs that together lie so many limbs below the highest ones are below a float's last bit.
constexpr int kMostLimbs = 3;

// Where the sums of a block of rows are, for both vectors of weight rows.
struct BlockSums {
  float* data[2];
  int64_t stride;   // floats
  bool first_part;  // nothing is there yet
};

// 17 … 32 rows: two tiles of rows times two of weights are four sums, which take turns. All limbs go into the same
// sums: twelve products of one step are long enough for a sum to be ready again.
template <int Limbs>
class DoubleBlock {
 public:
  static constexpr int64_t kMostRows = 2 * kTileRows;

  static void set_shapes(TileShapes& shapes, int64_t rows) {
    shapes.set(rows, [&](int tile) {
      const bool second = tile == 2 || tile == 3 || tile == kRows + 1;
      return tile >= kWeights || !second ? kTileRows : rows - kTileRows;
    });
  }

  static void start() {
    unroll<4>([](auto tile) ONNX_MOE_INLINE { zero_tile<tile>(); });
  }

  template <typename Panel, typename Rows>
  ONNX_MOE_INLINE static void add(const Panel& panel, const Rows& rows, int64_t step, int64_t row) {
    unroll<Panel::kLimbs>([&](auto weight_limb) ONNX_MOE_INLINE {
      load_tile<kWeights>(panel.tile(step, weight_limb, 0), kTileRowBytes);
      load_tile<kWeights + 1>(panel.tile(step, weight_limb, 1), kTileRowBytes);
      unroll<Limbs>([&](auto limb) ONNX_MOE_INLINE {
        if constexpr (limb + weight_limb < kMostLimbs) {
          load_tile<kRows>(rows.tile(step, limb, row), kTileRowBytes);
          load_tile<kRows + 1>(rows.tile(step, limb, row + kTileRows), kTileRowBytes);
          multiply_tiles<0, kRows, kWeights>();
          multiply_tiles<1, kRows, kWeights + 1>();
          multiply_tiles<2, kRows + 1, kWeights>();
          multiply_tiles<3, kRows + 1, kWeights + 1>();
        }
      });
    });
  }

  // A part's sums are added to those of the parts before: one sum over all of K = 14336 was wrong by 2.3e-6.
  static void finish(const BlockSums& sums, int64_t rows) {
    if (sums.first_part) {
      unroll<4>([&](auto tile) ONNX_MOE_INLINE { store_tile<tile>(place(sums, tile), row_bytes(sums)); });
      return;
    }
    alignas(64) float part[4][kTileRows * kTileRows];
    unroll<4>([&](auto tile) ONNX_MOE_INLINE { store_tile<tile>(part[tile], kTileRowBytes); });
    for (int tile = 0; tile < 4; ++tile) {
      const int64_t tile_rows = tile < 2 ? kTileRows : rows - kTileRows;
      float* target = place(sums, tile);
      for (int64_t row = 0; row < tile_rows; ++row, target += sums.stride) {
        _mm512_storeu_ps(target, _mm512_add_ps(_mm512_loadu_ps(target), _mm512_load_ps(part[tile] + row * kTileRows)));
      }
    }
  }

 private:
  static constexpr int kRows = 4;
  static constexpr int kWeights = 6;

  static float* place(const BlockSums& sums, int tile) {
    return sums.data[tile % 2] + tile / 2 * kTileRows * sums.stride;
  }
  static int64_t row_bytes(const BlockSums& sums) { return sums.stride * static_cast<int64_t>(sizeof(float)); }
};

// Up to 16 rows: a sum for each limb and vector of weight rows, so that no product waits for another one of its step.
template <int Limbs>
class SingleBlock {
 public:
  static constexpr int64_t kMostRows = kTileRows;

  static void set_shapes(TileShapes& shapes, int64_t rows) {
    shapes.set(rows, [&](int tile) { return tile == kWeights ? kTileRows : rows; });
  }

  static void start() {
    unroll<2 * Limbs>([](auto tile) ONNX_MOE_INLINE { zero_tile<tile>(); });
  }

  template <typename Panel, typename Rows>
  ONNX_MOE_INLINE static void add(const Panel& panel, const Rows& rows, int64_t step, int64_t row) {
    unroll<Panel::kLimbs>([&](auto weight_limb) ONNX_MOE_INLINE {
      unroll<2>([&](auto vector) ONNX_MOE_INLINE {
        load_tile<kWeights>(panel.tile(step, weight_limb, vector), kTileRowBytes);
        unroll<Limbs>([&](auto limb) ONNX_MOE_INLINE {
          if constexpr (limb + weight_limb < kMostLimbs) {
            load_tile<kRows>(rows.tile(step, limb, row), kTileRowBytes);
            multiply_tiles<vector * Limbs + limb, kRows, kWeights>();
          }
        });
      });
    });
  }

  static void finish(const BlockSums& sums, int64_t rows) {
    alignas(64) float limbs[2 * Limbs][kTileRows * kTileRows];
    unroll<2 * Limbs>([&](auto tile) ONNX_MOE_INLINE { store_tile<tile>(limbs[tile], kTileRowBytes); });
    for (int vector = 0; vector < 2; ++vector) {
      for (int64_t row = 0; row < rows; ++row) {
        float* target = sums.data[vector] + row * sums.stride;
        __m512 sum = _mm512_load_ps(limbs[vector * Limbs + Limbs - 1] + row * kTileRows);
        for (int limb = Limbs - 2; limb >= 0; --limb) {
          sum = _mm512_add_ps(sum, _mm512_load_ps(limbs[vector * Limbs + limb] + row * kTileRows));
        }
        _mm512_storeu_ps(target, sums.first_part ? sum : _mm512_add_ps(_mm512_loadu_ps(target), sum));
      }
    }
  }

 private:
  static constexpr int kRows = 6;
  static constexpr int kWeights = 7;
};

}  // namespace
}  // namespace onnx_moe
