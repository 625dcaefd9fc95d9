// Expert projection of many assignments: a threadgroup of four simdgroups computes a tile of 32 assignments of one
// expert by 32 weight rows with simdgroup matrices in float32. Rows of x are read where they lie; a gated tile holds
// 16 gate rows beside the 16 up rows of the same outputs. The lower half is skipped where a tile has 16 rows or fewer.
#include "activations.h"
#include "projection.h"

using namespace metal;

constant constexpr uint TILE = GROUPED_TILE;
constant constexpr uint STRIDE = TILE + 4;  // keeps neighbouring rows in different banks
// A thread's codes of a load, which it decodes in four steps of EIGHT. A step's tile is eight columns of each of the four
// threads of a row: in which order columns are summed is free, and so every load is 16 bytes wide.
constant constexpr uint LOADED = 32;
constant constexpr uint PERIOD = 4 * LOADED;  // columns of the four threads' loads
// Weights are multiplied larger than they are: 0.5 · 2^-127 is no normal float, which a device may flush to zero.
constant constexpr float LIFT = 16.0f;

// Codes from `column` on, zeros beyond the row's end. Rows whose length is an odd multiple of 16 (nvfp4's alone) begin at
// odd multiples of 8 bytes.
inline uint4 load_codes(device const uchar* row, uint column, uint columns) {
  if (column >= columns) return uint4(0u);
  device const uchar* codes = row + column / 2;
  if (columns % LOADED == 0) return *(device const uint4*)codes;
  const uint2 low = *(device const uint2*)codes;
  if (column + LOADED / 2 >= columns) return uint4(low.x, low.y, 0u, 0u);
  const uint2 high = *(device const uint2*)(codes + LOADED / 4);
  return uint4(low.x, low.y, high.x, high.y);
}

constant constexpr uint LOADS = EIGHT * sizeof(ELEMENT) / 16;  // of eight activations

// Eight activations as they lie in memory, zeros where they are not there: on their way until they are unpacked.
inline void load_eight(device const ELEMENT* x, bool are_there, thread uint4* words) {
  for (uint i = 0; i < LOADS; ++i) {
    words[i] = uint4(0u);
    if (are_there) words[i] = ((device const uint4*)x)[i];
  }
}

inline void unpack_eight(thread const uint4* words, device const ELEMENT* source, thread float* values) {
  for (uint i = 0; i < LOADS; ++i) unpack(words[i], source, values + i * (EIGHT / LOADS));
}

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

  // A thread fills EIGHT values of one row of either tile.
  const uint row = thread_index / 4;
  const uint part = thread_index % 4;
  const uint half_index = row / outputs;
  const uint column = first_column + row % outputs;
  const bool has_weight = column < arguments.output_columns;
  const ulong weight_index =
      ulong(expert) * arguments.rows + weight_row(arguments, has_weight ? column : 0, half_index);
  const uint scale_bytes = FORMAT == MXFP4 || FORMAT == NVFP4 ? 1 : 2;
  const uint columns = arguments.columns;
  device const uchar* codes = weights + weight_index * (columns / 2);
  device const uchar* row_scales = scales + weight_index * (columns / BLOCK_SIZE) * scale_bytes;
  const bool has_x = row < count;
  device const ELEMENT* x_source = x;
  if (has_x) x_source += x_row(arguments, grouped[first + row]) * columns;
  threadgroup float* x_values = x_tile + row * STRIDE + EIGHT * part;
  threadgroup float* weight_values = weight_tile + row * STRIDE + EIGHT * part;

  const uint tile_row = 16 * (simdgroup / 2);
  const uint tile_column = 16 * (simdgroup % 2);
  const bool works = tile_row < count;
  simdgroup_float8x8 sums[2][2];
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 2; ++j) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  // What the next step and the next period need is on its way while this one's tile is multiplied.
  const uint own_column = LOADED * part;
  uint4 next_codes = load_codes(codes, own_column, columns);
  uint4 next_x[LOADS];
  load_eight(x_source + own_column, has_x && own_column < columns, next_x);
  for (uint base = 0; base < columns; base += PERIOD) {
    const uint4 words = next_codes;
    next_codes = load_codes(codes, base + PERIOD + own_column, columns);
    for (uint step = 0; step < LOADED / EIGHT && base + EIGHT * step < columns; ++step) {
      const uint column_in_row = base + own_column + EIGHT * step;
      const bool inside = column_in_row < columns;
      float values[EIGHT];
      unpack_eight(next_x, x, values);
      for (uint i = 0; i < EIGHT; ++i) x_values[i] = values[i];
      const uint following = step + 1 < LOADED / EIGHT ? column_in_row + EIGHT : base + PERIOD + own_column;
      load_eight(x_source + following, has_x && following < columns, next_x);
      if (inside && has_weight) {
        const BlockScale scale = load_scale(row_scales, column_in_row / BLOCK_SIZE);
        const float unit = scale.unit * LIFT;
        for (uint j = 0; j < 4; ++j) {
          const half2 pair = decode_pair(words[step], j);
          weight_values[j] = float(pair.x) * unit * scale.scale;
          weight_values[j + 4] = float(pair.y) * unit * scale.scale;
        }
      } else {
        for (uint i = 0; i < EIGHT; ++i) weight_values[i] = 0.0f;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (works) {
        for (uint depth = 0; depth < TILE; depth += 8) {
          simdgroup_float8x8 left[2];
          simdgroup_float8x8 right[2];
          for (uint i = 0; i < 2; ++i) {
            simdgroup_load(left[i], x_tile + (tile_row + 8 * i) * STRIDE + depth, STRIDE);
            simdgroup_load(right[i], weight_tile + (tile_column + 8 * i) * STRIDE + depth, STRIDE, ulong2(0, 0), true);
          }
          for (uint i = 0; i < 2; ++i) {
            for (uint j = 0; j < 2; ++j) simdgroup_multiply_accumulate(sums[i][j], left[i], right[j], sums[i][j]);
          }
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
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
  for (uint i = thread_index; i < count * outputs; i += GROUPED_THREADS) {
    const uint output = first_column + i % outputs;
    if (output >= arguments.output_columns) continue;
    threadgroup const float* results = result_tile + (i / outputs) * STRIDE + i % outputs;
    const float gate = scaled_and_biased(arguments, results[0] / LIFT, expert, weight_row(arguments, output, 0), 0,
                                         global_scale, bias);
    float up = 0.0f;
    if (GATED) {
      up = scaled_and_biased(arguments, results[outputs] / LIFT, expert, weight_row(arguments, output, 1), 1, global_scale,
                             bias);
    }
    store_output(y, ulong(grouped[first + i / outputs]) * arguments.output_columns + output,
                 output_value(arguments, gate, up));
  }
}
