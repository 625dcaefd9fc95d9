// Matrix-vector products: a simdgroup computes ROWS weight rows together, so that the activations are loaded once for
// all of them and as many loads of weights are in flight. A lane takes 16 bytes of codes of each row at a step, 32
// columns; neighbouring lanes' loads are contiguous.
#pragma once

#include "activations.h"
#include "projection.h"

constant constexpr uint ROWS = VECTOR_ROWS;
constant constexpr uint COLUMNS_PER_LOAD = 32;
constant constexpr uint PART = 16;  // columns that are multiplied at a time: no block is smaller

// ROWS rows of one expert, by their indices among all experts' rows.
struct WeightRows {
  ulong rows[ROWS];
  uint columns;
  device const uchar* codes;
  device const uchar* scales;
};

// The rows of the output columns from `first_column` on; a gated column has two. Beyond the last column: that column
// again, whose result nobody keeps.
inline WeightRows weight_rows(constant ExpertGemmArguments& arguments, device const uchar* weights,
                              device const uchar* scales, uint expert, uint first_column) {
  const uint halves = GATED ? 2 : 1;
  WeightRows result;
  for (uint r = 0; r < ROWS; ++r) {
    const uint column = metal::min(first_column + r / halves, arguments.output_columns - 1);
    result.rows[r] = ulong(expert) * arguments.rows + weight_row(arguments, column, r % halves);
  }
  result.columns = arguments.columns;
  result.codes = weights;
  result.scales = scales;
  return result;
}

// Columns of a step: half a load where whole ones would leave half of the lanes without work, and in rows whose length
// is an odd multiple of 16 (nvfp4's alone), which begin at odd multiples of 8 bytes.
inline uint step_columns(uint columns) {
  const bool is_short = columns <= SIMD_WIDTH * PART;
  return is_short || columns % COLUMNS_PER_LOAD != 0 ? PART : COLUMNS_PER_LOAD;
}

inline void load_codes(thread const WeightRows& weights, uint column, thread uint4* words) {
  for (uint r = 0; r < ROWS; ++r) {
    device const uchar* codes = weights.codes + weights.rows[r] * (weights.columns / 2) + column / 2;
    if (step_columns(weights.columns) == COLUMNS_PER_LOAD) {
      words[r] = *(device const uint4*)codes;
    } else {
      const uint2 narrow = *(device const uint2*)codes;
      words[r] = uint4(narrow.x, narrow.y, 0u, 0u);
    }
  }
}

inline BlockScale row_scale(thread const WeightRows& weights, uint row, uint column) {
  const ulong row_bytes = weights.columns / BLOCK_SIZE * (FORMAT == MXFP4 || FORMAT == NVFP4 ? 1 : 2);
  return load_scale(weights.scales + weights.rows[row] * row_bytes, column / BLOCK_SIZE);
}
