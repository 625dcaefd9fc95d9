// Expert projection of few assignments: a simdgroup computes one output column (its gate and its up row) of one
// assignment; a lane takes 16 bytes of codes at a time, neighbours' loads are contiguous. Weights are read once an
// assignment, so this is for batches in which experts hardly repeat.
#include "projection.h"

using namespace metal;

constant constexpr uint COLUMNS_PER_LOAD = 32;

// The product of one weight row, summed over the simdgroup.
inline float row_product(device const uchar* codes, device const uchar* scales, device const ELEMENT* x, uint columns,
                         uint lane) {
  float sum = 0.0f;
  const bool wide = columns % COLUMNS_PER_LOAD == 0;  // otherwise rows begin at odd multiples of 8 bytes
  const uint step = wide ? 32 : 16;
  for (uint first = lane * step; first < columns; first += 32 * step) {
    uint4 words;
    if (wide) {
      words = *(device const uint4*)(codes + first / 2);
    } else {
      const uint2 narrow = *(device const uint2*)(codes + first / 2);
      words = uint4(narrow.x, narrow.y, 0u, 0u);
    }
    for (uint part = 0; part < step / 16; ++part) {
      float values[16];
      for (uint i = 0; i < 16; ++i) values[i] = float(x[first + 16 * part + i]);
      const uint low = part == 0 ? words.x : words.z;
      const uint high = part == 0 ? words.y : words.w;
      const float products = dot_word(low, values) + dot_word(high, values + 8);
      const BlockScale scale = load_scale(scales, (first + 16 * part) / BLOCK_SIZE);
      sum = fma(products * scale.unit, scale.scale, sum);
    }
  }
  return simd_sum(sum);
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
  const uint column = group.x * simdgroups + simdgroup;
  const uint assignment = group.y;
  if (column >= arguments.output_columns) return;
  const uint expert = uint(expert_ids[assignment]);
  device const ELEMENT* row = x + x_row(arguments, assignment) * arguments.columns;
  const uint scale_bytes = FORMAT == MXFP4 || FORMAT == NVFP4 ? 1 : 2;
  float results[2] = {0.0f, 0.0f};
  for (uint half_index = 0; half_index < (GATED ? 2u : 1u); ++half_index) {
    const uint n = weight_row(arguments, column, half_index);
    const ulong index = ulong(expert) * arguments.rows + n;
    const float product = row_product(weights + index * (arguments.columns / 2),
                                      scales + index * (arguments.columns / BLOCK_SIZE) * scale_bytes, row,
                                      arguments.columns, lane);
    results[half_index] = scaled_and_biased(arguments, product, expert, n, half_index, global_scale, bias);
  }
  if (lane == 0) {
    store_output(y, ulong(assignment) * arguments.output_columns + column,
                 output_value(arguments, results[0], results[1]));
  }
}
