// Expert projection of few assignments: a simdgroup computes four weight rows of one assignment. Weights are read once
// an assignment, so this is for batches in which experts hardly repeat.
#include "decode.h"

using namespace metal;

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
  const WeightRows rows = weight_rows(arguments, weights, scales, expert, first_column);
  float sums[ROWS];
  row_products(rows, x + x_row(arguments, assignment) * arguments.columns, lane, sums);
  if (lane != 0) return;
  for (uint r = 0; r < ROWS; r += halves) {
    const uint column = first_column + r / halves;
    if (column >= arguments.output_columns) return;
    store_output(y, ulong(assignment) * arguments.output_columns + column,
                 column_output(arguments, sums + r, expert, column, global_scale, bias));
  }
}
