// Assignments grouped by expert without the host: a simdgroup owns an expert and reads all ids, 32 at a time, so
// positions are stable and the same on every run.
#include <metal_stdlib>

#include "arguments.h"

using namespace metal;

constant uint TILE_ROWS [[function_constant(0)]];  // of plan_tiles: the assignments that a tile holds

// For a projection of its own; in a block, the router has counted.
kernel void count_assignments(constant GroupingArguments& arguments [[buffer(0)]],
                              device const int* expert_ids [[buffer(1)]],
                              device uint* counts [[buffer(2)]],
                              uint group [[threadgroup_position_in_grid]],
                              uint simdgroups [[simdgroups_per_threadgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
  const uint expert = group * simdgroups + simdgroup;
  if (expert >= arguments.num_experts) return;
  uint count = 0;
  for (uint i = lane; i < arguments.assignments; i += 32) count += uint(expert_ids[i]) == expert ? 1u : 0u;
  count = simd_sum(count);
  if (lane == 0) counts[expert] = count;
}

// One simdgroup: where each expert's run begins, and the list of tiles (expert, first, count) that are not empty.
kernel void plan_tiles(constant GroupingArguments& arguments [[buffer(0)]],
                       device const uint* counts [[buffer(1)]],
                       device uint* offsets [[buffer(2)]],
                       device uint* tiles [[buffer(3)]],
                       device uint* tile_count [[buffer(4)]],
                       uint lane [[thread_index_in_simdgroup]]) {
  uint first_row = 0;
  uint first_tile = 0;
  for (uint base = 0; base < arguments.num_experts; base += 32) {
    const uint expert = base + lane;
    const uint count = expert < arguments.num_experts ? counts[expert] : 0u;
    const uint own_tiles = (count + TILE_ROWS - 1) / TILE_ROWS;
    const uint row = first_row + simd_prefix_exclusive_sum(count);
    const uint tile = first_tile + simd_prefix_exclusive_sum(own_tiles);
    first_row += simd_sum(count);
    first_tile += simd_sum(own_tiles);
    if (expert < arguments.num_experts) offsets[expert] = row;
    for (uint i = 0; i < own_tiles; ++i) {
      device uint* entry = tiles + 3 * (tile + i);
      entry[0] = expert;
      entry[1] = row + i * TILE_ROWS;
      entry[2] = min(TILE_ROWS, count - i * TILE_ROWS);
    }
  }
  if (lane == 0) tile_count[0] = first_tile;
}

kernel void scatter_assignments(constant GroupingArguments& arguments [[buffer(0)]],
                                device const int* expert_ids [[buffer(1)]],
                                device const uint* offsets [[buffer(2)]],
                                device uint* grouped [[buffer(3)]],
                                uint group [[threadgroup_position_in_grid]],
                                uint simdgroups [[simdgroups_per_threadgroup]],
                                uint simdgroup [[simdgroup_index_in_threadgroup]],
                                uint lane [[thread_index_in_simdgroup]]) {
  const uint expert = group * simdgroups + simdgroup;
  if (expert >= arguments.num_experts) return;
  uint position = offsets[expert];
  for (uint base = 0; base < arguments.assignments; base += 32) {
    const uint i = base + lane;
    const uint mine = i < arguments.assignments && uint(expert_ids[i]) == expert ? 1u : 0u;
    const uint rank = simd_prefix_exclusive_sum(mine);
    if (mine != 0) grouped[position + rank] = i;
    position += simd_sum(mine);
  }
}
