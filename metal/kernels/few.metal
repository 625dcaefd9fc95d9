// Expert projection of some assignments an expert: a simdgroup decodes four weight rows once for up to eight assignments
// of their expert, which grouping.metal lists as a tile. Below eight, simdgroup matrices would multiply mostly zeros.
#include "vector.h"

using namespace metal;

constant constexpr uint TILE = FEW_ASSIGNMENTS;

// The PART codes of a row from `part` of a step on, as pairs of columns (j, j + 4) and (8 + j, 12 + j).
inline void decode_part(uint4 words, uint part, thread half2* pairs) {
  const uint low = part == 0 ? words.x : words.z;
  const uint high = part == 0 ? words.y : words.w;
  for (uint j = 0; j < 4; ++j) {
    pairs[j] = decode_pair(low, j);
    pairs[4 + j] = decode_pair(high, j);
  }
}

inline float dot_pairs(thread const half2* pairs, thread const float* x) {
  float sum = 0.0f;
  for (uint j = 0; j < 8; ++j) {
    const uint column = j < 4 ? j : j + 4;
    sum = fma(float(pairs[j].x), x[column], sum);
    sum = fma(float(pairs[j].y), x[column + 4], sum);
  }
  return sum;
}

kernel void expert_few(constant ExpertGemmArguments& arguments [[buffer(0)]],
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
                       uint simdgroups [[simdgroups_per_threadgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
  if (group.y >= tile_count[0]) return;
  const uint halves = GATED ? 2 : 1;
  const uint first_column = (group.x * simdgroups + simdgroup) * (ROWS / halves);
  if (first_column >= arguments.output_columns) return;
  device const uint* tile = tiles + 3 * group.y;
  const uint expert = tile[0];
  const uint first_row = tile[1];
  const uint count = tile[2];
  ulong x_offsets[TILE];
#pragma clang loop unroll(full)
  for (uint a = 0; a < TILE; ++a) {
    x_offsets[a] = x_row(arguments, grouped[first_row + min(a, count - 1)]) * arguments.columns;
  }
  const WeightRows rows = weight_rows(arguments, weights, scales, expert, first_column);
  // Unrolled with every loop over it, it stays in registers: an index that the compiler does not know would send it to
  // memory.
  float sums[ROWS][TILE];
#pragma clang loop unroll(full)
  for (uint r = 0; r < ROWS; ++r) {
#pragma clang loop unroll(full)
    for (uint a = 0; a < TILE; ++a) sums[r][a] = 0.0f;
  }
  const uint step = step_columns(arguments.columns);
  for (uint first = lane * step; first < arguments.columns; first += 32 * step) {
    uint4 words[ROWS];
    load_codes(rows, first, words);
    BlockScale block[ROWS];
    for (uint part = 0; part < step / PART; ++part) {
      half2 pairs[ROWS][PART / 2];
      for (uint r = 0; r < ROWS; ++r) {
        decode_part(words[r], part, pairs[r]);
        if (part == 0 || BLOCK_SIZE == PART) block[r] = row_scale(rows, r, first + PART * part);
      }
#pragma clang loop unroll(full)
      for (uint a = 0; a < TILE; ++a) {
        if (a < count) {
          float values[PART];
          load_values(x + x_offsets[a] + first + PART * part, PART, values);
#pragma clang loop unroll(full)
          for (uint r = 0; r < ROWS; ++r) {
            sums[r][a] = fma(dot_pairs(pairs[r], values) * block[r].unit, block[r].scale, sums[r][a]);
          }
        }
      }
    }
  }
  // Lane c · TILE + a keeps column c of assignment a.
  float gate = 0.0f;
  float up = 0.0f;
#pragma clang loop unroll(full)
  for (uint r = 0; r < ROWS; ++r) {
#pragma clang loop unroll(full)
    for (uint a = 0; a < TILE; ++a) {
      const float sum = simd_sum(sums[r][a]);
      const bool is_mine = lane == r / halves * TILE + a;
      if (is_mine && r % halves == 0) gate = sum;
      if (is_mine && r % halves != 0) up = sum;
    }
  }
  const uint column = first_column + lane / TILE;
  const uint a = lane % TILE;
  if (lane / TILE >= ROWS / halves || column >= arguments.output_columns || a >= count) return;
  gate = scaled_and_biased(arguments, gate, expert, weight_row(arguments, column, 0), 0, global_scale, bias);
  if (GATED) up = scaled_and_biased(arguments, up, expert, weight_row(arguments, column, 1), 1, global_scale, bias);
  store_output(y, ulong(grouped[first_row + a]) * arguments.output_columns + column,
               output_value(arguments, gate, up));
}
