// Expert projection of many assignments: a threadgroup of four simdgroups computes a tile of 32 assignments of one
// expert by 32 weight rows with simdgroup matrices in float32. Rows of x are read where they lie; a gated tile holds
// 16 gate rows beside the 16 up rows of the same outputs. The lower half is skipped where a tile has 16 rows or fewer.
#include "projection.h"

using namespace metal;

constant constexpr uint TILE = 32;
constant constexpr uint THREADS = 128;
constant constexpr uint STRIDE = TILE + 4;  // keeps neighbouring rows in different banks

kernel void expert_grouped(constant ExpertGemmArguments& arguments [[buffer(0)]],
                           device const ELEMENT* x [[buffer(1)]],
                           device const uint* grouped [[buffer(2)]],
                           device const uint* tiles [[buffer(3)]],
                           device const uint* tile_count [[buffer(4)]],
                           device const uchar* weights [[buffer(5)]],
                           device const uchar* scales [[buffer(6)]],
                           device const float* global_scale [[buffer(7)]],
                           device const uchar* bias [[buffer(8)]],
                           device uchar* y [[buffer(9)]],
                           uint2 group [[threadgroup_position_in_grid]],
                           uint thread_index [[thread_index_in_threadgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float x_tile[TILE * STRIDE];
  threadgroup float weight_tile[TILE * STRIDE];
  if (group.y >= tile_count[0]) return;
  device const uint* tile = tiles + 3 * group.y;
  const uint expert = tile[0];
  const uint first = tile[1];
  const uint count = tile[2];
  const uint outputs = GATED ? TILE / 2 : TILE;
  const uint first_column = group.x * outputs;

  // A thread fills eight values of one row of either tile.
  const uint row = thread_index / 4;
  const uint part = 8 * (thread_index % 4);
  const uint half_index = row / outputs;
  const uint column = first_column + row % outputs;
  const bool has_weight = column < arguments.output_columns;
  const ulong weight_index =
      ulong(expert) * arguments.rows + weight_row(arguments, has_weight ? column : 0, half_index);
  const uint scale_bytes = FORMAT == MXFP4 || FORMAT == NVFP4 ? 1 : 2;
  device const uchar* codes = weights + weight_index * (arguments.columns / 2);
  device const uchar* row_scales = scales + weight_index * (arguments.columns / BLOCK_SIZE) * scale_bytes;
  device const ELEMENT* x_source = x;
  if (row < count) x_source += x_row(arguments, grouped[first + row]) * arguments.columns;

  const uint tile_row = 16 * (simdgroup / 2);
  const uint tile_column = 16 * (simdgroup % 2);
  const bool works = tile_row < count;
  simdgroup_float8x8 sums[2][2];
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 2; ++j) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  for (uint k = 0; k < arguments.columns; k += TILE) {
    const uint depth = k + part;
    threadgroup float* x_values = x_tile + row * STRIDE + part;
    threadgroup float* weight_values = weight_tile + row * STRIDE + part;
    const bool inside = depth < arguments.columns;
    for (uint i = 0; i < 8; ++i) x_values[i] = inside && row < count ? float(x_source[depth + i]) : 0.0f;
    if (inside && has_weight) {
      const uint word = *(device const uint*)(codes + depth / 2);
      const BlockScale scale = load_scale(row_scales, depth / BLOCK_SIZE);
      for (uint j = 0; j < 4; ++j) {
        const half2 pair = decode_pair(word, j);
        weight_values[j] = float(pair.x) * scale.unit * scale.scale;
        weight_values[j + 4] = float(pair.y) * scale.unit * scale.scale;
      }
    } else {
      for (uint i = 0; i < 8; ++i) weight_values[i] = 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (works) {
      for (uint depth_step = 0; depth_step < TILE; depth_step += 8) {
        simdgroup_float8x8 left[2];
        simdgroup_float8x8 right[2];
        for (uint i = 0; i < 2; ++i) {
          simdgroup_load(left[i], x_tile + (tile_row + 8 * i) * STRIDE + depth_step, STRIDE);
          simdgroup_load(right[i], weight_tile + (tile_column + 8 * i) * STRIDE + depth_step, STRIDE, ulong2(0, 0),
                         true);
        }
        for (uint i = 0; i < 2; ++i) {
          for (uint j = 0; j < 2; ++j) simdgroup_multiply_accumulate(sums[i][j], left[i], right[j], sums[i][j]);
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  threadgroup float* result_tile = x_tile;
  if (works) {
    for (uint i = 0; i < 2; ++i) {
      for (uint j = 0; j < 2; ++j) {
        simdgroup_store(sums[i][j], result_tile + (tile_row + 8 * i) * STRIDE + tile_column + 8 * j, STRIDE);
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < count * outputs; i += THREADS) {
    const uint output = first_column + i % outputs;
    if (output >= arguments.output_columns) continue;
    threadgroup const float* results = result_tile + (i / outputs) * STRIDE + i % outputs;
    const float gate = scaled_and_biased(arguments, results[0], expert, weight_row(arguments, output, 0), 0,
                                         global_scale, bias);
    float up = 0.0f;
    if (GATED) {
      up = scaled_and_biased(arguments, results[outputs], expert, weight_row(arguments, output, 1), 1, global_scale,
                             bias);
    }
    store_output(y, ulong(grouped[first + i / outputs]) * arguments.output_columns + output,
                 output_value(arguments, gate, up));
  }
}
