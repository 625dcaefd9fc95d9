// AMX tiles: registers of 16 rows × 64 bytes, and the instruction that multiplies two of them (Intel, "Intrinsics for
// Advanced Matrix Extensions"). A product takes 16 cycles for 16 × 16 × 32 multiply-adds of bfloat16, summed as
// float32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/vector/inline.h"

namespace onnx_moe {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileRowBytes = 64;
constexpr int kTiles = 8;
constexpr int64_t kTileBytes = kTileRows * kTileRowBytes;

// Instructions on tiles. (Compilers' own functions for them want literal numbers, and GCC's do not say which memory
// they read.)
template <int kTile>
ONNX_MOE_INLINE inline void load_tile(const void* rows, int64_t row_distance) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(row_distance), "i"(kTile) : "memory");
}
template <int kTile>
ONNX_MOE_INLINE inline void store_tile(void* rows, int64_t row_distance) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(row_distance), "i"(kTile) : "memory");
}
template <int kTile>
ONNX_MOE_INLINE inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// sums += rows · weights, in pairs of columns.
template <int kSums, int kRows, int kWeights>
ONNX_MOE_INLINE inline void multiply_tiles() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights));
}

// The shapes of a thread's tiles while it multiplies. In the end those are there again that were found: other libraries
// (oneDNN, as Torch uses it) remember what a thread has loaded, and their next product would be an illegal instruction.
// Where nothing was loaded, tiles are given up, so that the system need not save them when it switches threads.
class TileShapes {
 public:
  TileShapes() { __asm__ volatile("sttilecfg %0" : "=m"(found_)); }
  ~TileShapes() {
    if (key_ == 0) return;
    if (found_.palette == 0) {
      __asm__ volatile("tilerelease");
    } else {
      load(found_);
    }
  }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;

  // rows_of(tile) is the rows of each; `key`, not 0, tells these shapes from others. A product takes as many cycles as
  // its activations have rows.
  template <typename RowsOf>
  void set(int64_t key, const RowsOf& rows_of) {
    if (key == key_) return;
    key_ = key;
    Configuration configuration;
    for (int tile = 0; tile < kTiles; ++tile) {
      configuration.row_bytes[tile] = kTileRowBytes;
      configuration.rows[tile] = static_cast<uint8_t>(rows_of(tile));
    }
    load(configuration);
  }

 private:
  // As the processor reads it.
  struct alignas(64) Configuration {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  static_assert(sizeof(Configuration) == 64);

  static void load(const Configuration& configuration) { __asm__ volatile("ldtilecfg %0" ::"m"(configuration)); }

  Configuration found_;
  int64_t key_ = 0;  // of the shapes that are loaded
};

}  // namespace
}  // namespace onnx_moe
