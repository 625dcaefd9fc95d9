// Expert projection of few assignments. A simdgroup computes four weight rows of one assignment at a time, so that its
// activations are loaded once for all of them and four loads of weights are in flight; a lane takes 16 bytes of codes of
// each row, neighbours' loads are contiguous. Weights are read once an assignment, so this is for batches in which
// experts hardly repeat.
#include "projection.h"

using namespace metal;

constant constexpr uint ROWS = 4;
constant constexpr uint COLUMNS_PER_LOAD = 32;

// Sixteen activations from `x` on, which is aligned to 16 of them.
inline void load_activations(device const ELEMENT* x, thread float* values) {
  for (uint i = 0; i < 16; i += 4) {
    const vec<ELEMENT, 4> four = *(device const vec<ELEMENT, 4>*)(x + i);
    for (uint j = 0; j < 4; ++j) values[i + j] = float(four[j]);
  }
}

// The products of ROWS weight rows, summed over the simdgroup. `rows`: their indices among all experts' rows.
inline void row_products(constant ExpertGemmArguments& arguments, device const uchar* weights,
                         device const uchar* scales, thread const ulong* rows, device const ELEMENT* x, uint lane,
                         thread float* sums) {
  const uint columns = arguments.columns;
  const bool wide = columns % COLUMNS_PER_LOAD == 0;  // otherwise rows begin at odd multiples of 8 bytes
  const uint step = wide ? 32 : 16;
  const ulong scale_row_bytes = columns / BLOCK_SIZE * (FORMAT == MXFP4 || FORMAT == NVFP4 ? 1 : 2);
  for (uint r = 0; r < ROWS; ++r) sums[r] = 0.0f;
  for (uint first = lane * step; first < columns; first += 32 * step) {
    uint4 words[ROWS];
    for (uint r = 0; r < ROWS; ++r) {
      device const uchar* codes = weights + rows[r] * (columns / 2) + first / 2;
      if (wide) {
        words[r] = *(device const uint4*)codes;
      } else {
        const uint2 narrow = *(device const uint2*)codes;
        words[r] = uint4(narrow.x, narrow.y, 0u, 0u);
      }
    }
    for (uint part = 0; part < step / 16; ++part) {
      float values[16];
      load_activations(x + first + 16 * part, values);
      for (uint r = 0; r < ROWS; ++r) {
        const uint low = part == 0 ? words[r].x : words[r].z;
        const uint high = part == 0 ? words[r].y : words[r].w;
        const float products = dot_word(low, values) + dot_word(high, values + 8);
        const BlockScale scale = load_scale(scales + rows[r] * scale_row_bytes, (first + 16 * part) / BLOCK_SIZE);
        sums[r] = fma(products * scale.unit, scale.scale, sums[r]);
      }
    }
  }
  for (uint r = 0; r < ROWS; ++r) sums[r] = simd_sum(sums[r]);
}

kernel void expert_decode(constant ExpertGemmArguments& arguments [[buffer(0)]],
                          device const ELEMENT* x [[buffer(1)]],
                          device const int* expert_ids [[buffer(2)]],
                          device const uchar* weights [[buffer(3)]],
                          device const uchar* scales [[buffer(4)]],
                          device const float* global_scale [[buffer(5)]],
                          device const uchar* bias [[buffer(6)]],
                          device uchar* y [[buffer(7)]],
                          uint2 group [[threadgroup_position_in_grid]],
                          uint simdgroups [[simdgroups_per_threadgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]]) {
  const uint halves = GATED ? 2 : 1;
  const uint first_column = (group.x * simdgroups + simdgroup) * (ROWS / halves);
  const uint assignment = group.y;
  if (first_column >= arguments.output_columns) return;
  const uint expert = uint(expert_ids[assignment]);
  device const ELEMENT* row = x + x_row(arguments, assignment) * arguments.columns;
  ulong rows[ROWS];
  for (uint r = 0; r < ROWS; ++r) {
    // Beyond the last column: that column again, whose result nobody keeps.
    const uint column = min(first_column + r / halves, arguments.output_columns - 1);
    rows[r] = ulong(expert) * arguments.rows + weight_row(arguments, column, r % halves);
  }
  float sums[ROWS];
  row_products(arguments, weights, scales, rows, row, lane, sums);
  if (lane != 0) return;
  for (uint r = 0; r < ROWS; r += halves) {
    const uint column = first_column + r / halves;
    if (column >= arguments.output_columns) return;
    float results[2] = {0.0f, 0.0f};
    for (uint half_index = 0; half_index < halves; ++half_index) {
      results[half_index] = scaled_and_biased(arguments, sums[r + half_index], expert,
                                              weight_row(arguments, column, half_index), half_index, global_scale, bias);
    }
    store_output(y, ulong(assignment) * arguments.output_columns + column,
                 output_value(arguments, results[0], results[1]));
  }
}
