// Expert projection of few assignments and the weighted sum over each token's slots in one dispatch: a threadgroup owns
// four weight rows of a token, its simdgroups share the slots, and a thread then sums a column in slot order, as
// combine.metal does: the same bytes as in two dispatches.
#include "decode.h"

using namespace metal;

kernel void expert_decode_combined(constant ExpertGemmArguments& arguments [[buffer(0)]],
                                   device const ELEMENT* x [[buffer(1)]],
                                   device const int* expert_ids [[buffer(2)]],
                                   device const uchar* weights [[buffer(3)]],
                                   device const uchar* scales [[buffer(4)]],
                                   device const float* global_scale [[buffer(5)]],
                                   device const uchar* bias [[buffer(6)]],
                                   device const float* expert_weights [[buffer(7)]],
                                   device ELEMENT* y [[buffer(8)]],
                                   uint2 group [[threadgroup_position_in_grid]],
                                   uint thread_index [[thread_index_in_threadgroup]],
                                   uint simdgroups [[simdgroups_per_threadgroup]],
                                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                                   uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float outputs[COMBINED_SLOTS * ROWS];
  const uint halves = GATED ? 2 : 1;
  const uint first_column = group.x * (ROWS / halves);
  const uint token = group.y;
  for (uint slot = simdgroup; slot < arguments.slots; slot += simdgroups) {
    const uint assignment = token * arguments.slots + slot;
    const uint expert = uint(expert_ids[assignment]);
    const WeightRows rows = weight_rows(arguments, weights, scales, expert, first_column);
    float sums[ROWS];
    row_products(rows, x + x_row(arguments, assignment) * arguments.columns, lane, sums);
    if (lane == 0) {
      for (uint r = 0; r < ROWS; r += halves) {
        const uint column = min(first_column + r / halves, arguments.output_columns - 1);
        outputs[slot * ROWS + r / halves] = column_output(arguments, sums + r, expert, column, global_scale, bias);
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint column = first_column + thread_index;
  if (thread_index >= ROWS / halves || column >= arguments.output_columns) return;
  float sum = 0.0f;
  for (uint slot = 0; slot < arguments.slots; ++slot) {
    sum = fma(expert_weights[ulong(token) * arguments.slots + slot], outputs[slot * ROWS + thread_index], sum);
  }
  y[ulong(token) * arguments.output_columns + column] = ELEMENT(sum);
}
