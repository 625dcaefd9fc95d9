// The one table of what runs where. Sizes that kernels know too are in kernels/arguments.h.
#pragma once

#include <cstdint>

#include "kernels/arguments.h"
#include "plan/plan.h"

namespace onnx_moe::metal {

struct RegimeSizes {
  Regime regime;
  const char* file;
  const char* kernel;
  double from;           // assignments an expert on average from which it serves; a single token is always decode
  int64_t tile_rows;     // assignments of an expert that share its decoded weights
  int64_t tile_columns;  // weight rows of a threadgroup, gate and up rows of its columns
};

inline constexpr int64_t kProjectionThreads = GROUPED_THREADS;  // of decode and few rows, too
inline constexpr int64_t kVectorColumns = int64_t{VECTOR_ROWS} * kProjectionThreads / SIMD_WIDTH;

// Not measured on a Mac. Decode reads weights once an assignment. From one assignment for every two experts a batch of
// several tokens repeats experts often enough to pay for grouping; from eight an expert, simdgroup matrices of 8 × 8
// are full.
inline constexpr RegimeSizes kRegimes[] = {
    {Regime::kDecode, "decode", "expert_decode", 0.0, 1, kVectorColumns},
    {Regime::kFew, "few", "expert_few", 0.5, FEW_ASSIGNMENTS, kVectorColumns},
    {Regime::kGrouped, "grouped", "expert_grouped", 8.0, GROUPED_TILE, GROUPED_TILE},
};

// Multiply-adds of a call from which onnx_moe.device = auto takes the GPU: handing it a command buffer and waiting
// costs 150 to 350 µs by published measurements, in which CPU kernels read some 8 MB of weights.
inline constexpr int64_t kWorthFrom = int64_t{1} << 24;

inline constexpr int64_t kRouterThreads = 8 * SIMD_WIDTH;
inline constexpr int64_t kGroupingSimdgroups = 8;
inline constexpr int64_t kCombineThreads = 64;
inline constexpr int64_t kCombinedSimdgroups = 8;  // at most; slots beyond share them

}  // namespace onnx_moe::metal
