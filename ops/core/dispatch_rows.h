// Rows of activations on their way to the experts and back.
#pragma once

#include <cstdint>

#include "core/element_type.h"
#include "core/parallel.h"
#include "kernels/kernel.h"

namespace onnx_moe {

// out[i] = x[indices[i]], bit for bit: x [rows, row_bytes], out [count, row_bytes]. Throws an Error, before anything is
// written, for an index outside [0, rows).
struct GatherRows {
  const void* x;
  int64_t rows;
  int64_t row_bytes;
  const int64_t* indices;
  int64_t count;
  void* out;
};
void gather_rows(const GatherRows& call, Host& host);

// out[t] = Σ_s weights[t, s] · y[positions[t, s]], summed in the order of the slots in float32: y [rows, columns] and
// out [tokens, columns] of one type, weights and positions [tokens, slots]. Throws an Error as above.
struct ScatterRows {
  ElementType type;
  const void* y;
  int64_t rows;
  int64_t columns;
  const int64_t* positions;
  const float* weights;
  int64_t tokens;
  int64_t slots;
  void* out;
};
void scatter_rows(const Kernel& kernel, const ScatterRows& call, Host& host);

}  // namespace onnx_moe
