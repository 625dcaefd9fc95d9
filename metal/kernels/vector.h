// Matrix-vector products: a simdgroup computes ROWS weight rows together, so that the activations are loaded once for
// all of them and as many loads of weights are in flight. A lane takes 16 bytes of codes of each row at a step, 32
// columns; neighbouring lanes' loads are contiguous.
#pragma once

#include "projection.h"

constant constexpr uint ROWS = 4;
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

// Columns of a step. Rows whose length is an odd multiple of 16 (nvfp4's alone) begin at odd multiples of 8 bytes.
inline uint step_columns(uint columns) { return columns % COLUMNS_PER_LOAD == 0 ? COLUMNS_PER_LOAD : PART; }

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

// The values of 16 bytes of activations, by the pointer that they were loaded from.
inline void unpack(uint4 words, device const float*, thread float* values) {
  for (uint j = 0; j < 4; ++j) values[j] = as_type<float>(words[j]);
}

template <typename Pair>
inline void unpack_pairs(uint4 words, thread float* values) {
  for (uint j = 0; j < 4; ++j) {
    const Pair pair = as_type<Pair>(words[j]);
    values[2 * j] = float(pair.x);
    values[2 * j + 1] = float(pair.y);
  }
}
inline void unpack(uint4 words, device const half*, thread float* values) { unpack_pairs<half2>(words, values); }
inline void unpack(uint4 words, device const bfloat*, thread float* values) { unpack_pairs<bfloat2>(words, values); }

// PART activations from `x` on, which is aligned to as many. Lanes are a step apart, so that a load costs what it
// touches: 16 bytes each, the widest there is.
inline void load_activations(device const ELEMENT* x, thread float* values) {
  const uint per_load = 16 / sizeof(ELEMENT);
  for (uint i = 0; i < PART; i += per_load) unpack(*(device const uint4*)(x + i), x, values + i);
}
