// The products of one assignment: what the kernels for few assignments share.
#pragma once

#include "vector.h"

// The dot product of eight codes with eight activations, in units of 2^-14.
inline float dot_word(uint word, thread const float* x) {
  float sum = 0.0f;
  for (uint j = 0; j < 4; ++j) {
    const half2 pair = decode_pair(word, j);
    sum = metal::fma(float(pair.x), x[j], sum);
    sum = metal::fma(float(pair.y), x[j + 4], sum);
  }
  return sum;
}

// The products of ROWS weight rows with `x`, summed over the simdgroup. The codes of the next step are on their way
// while this one's are multiplied.
inline void row_products(thread const WeightRows& weights, device const ELEMENT* x, uint lane, thread float* sums) {
  const uint columns = weights.columns;
  const uint step = step_columns(columns);
  for (uint r = 0; r < ROWS; ++r) sums[r] = 0.0f;
  uint4 words[ROWS];
  if (lane * step < columns) load_codes(weights, lane * step, words);
  for (uint first = lane * step; first < columns; first += 32 * step) {
    uint4 next[ROWS];
    const uint following = first + 32 * step;
    if (following < columns) load_codes(weights, following, next);
    float products[ROWS];
    for (uint part = 0; part < step / PART; ++part) {
      float values[PART];
      load_values(x + first + PART * part, PART, values);
      const bool begins_block = part == 0 || BLOCK_SIZE == PART;
      const bool ends_block = PART * (part + 1) == step || BLOCK_SIZE == PART;
      for (uint r = 0; r < ROWS; ++r) {
        const uint low = part == 0 ? words[r].x : words[r].z;
        const uint high = part == 0 ? words[r].y : words[r].w;
        const float product = dot_word(low, values) + dot_word(high, values + 8);
        products[r] = begins_block ? product : products[r] + product;
        if (!ends_block) continue;
        const BlockScale scale = row_scale(weights, r, first + PART * part);
        sums[r] = metal::fma(products[r] * scale.unit, scale.scale, sums[r]);
      }
    }
    if (following >= columns) break;
    for (uint r = 0; r < ROWS; ++r) words[r] = next[r];
  }
  for (uint r = 0; r < ROWS; ++r) sums[r] = metal::simd_sum(sums[r]);
}

// The output of a column whose products begin at `sums`: one, or gate and up.
inline float column_output(constant ExpertGemmArguments& arguments, thread const float* sums, uint expert, uint column,
                           device const float* global_scale, device const uchar* bias) {
  const float gate = scaled_and_biased(arguments, sums[0], expert, weight_row(arguments, column, 0), 0, global_scale,
                                       bias);
  if (!GATED) return output_value(arguments, gate, 0.0f);
  const float up = scaled_and_biased(arguments, sums[1], expert, weight_row(arguments, column, 1), 1, global_scale,
                                     bias);
  return output_value(arguments, gate, up);
}
