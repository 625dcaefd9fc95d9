// What a kernel is: the arithmetic of both operators for one instruction set. A kernel knows nothing of ONNX Runtime,
// of threads or of routing; the drivers in core/ hand it tiles.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/element_type.h"
#include "core/fp4.h"

namespace onnx_moe {

// Activation rows, as a kernel's `pack` (or `widen`) wrote them.
struct Rows {
  const float* const* data;
  int64_t count;
};

// Where a tile's products go: value (row, column) to data[row * stride + column].
struct Products {
  float* data;
  int64_t stride;
};

// `columns` output columns of one expert, from weight row `first`: y = W · x, block scales included.
struct Fp4Tile {
  BlockFormat format;
  const uint8_t* codes;  // of the expert: [N, K / 2]
  const void* scales;    // of the expert: [N, K / block]
  int64_t depth;         // K
  int64_t first;
  int64_t columns;
};

// The same for plain weights [N, K] (the router's matrix).
struct PlainTile {
  ElementType type;
  const void* weights;
  int64_t depth;
  int64_t first;
  int64_t columns;
};

// A row of products on its way out: y = activation(gate · gate_scale + gate_bias, up · up_scale + up_bias).
// Step is 2 when gate and up lie interleaved in one row. Biases may be null; `up` is unused when not gated.
struct Epilogue {
  const Activation* activation;
  const float* gate;
  const float* up;
  int64_t step;
  float gate_scale;
  float up_scale;
  const float* gate_bias;
  const float* up_bias;
  int64_t columns;
};

struct Kernel {
  const char* name;
  bool (*supported)();
  // Floats that a packed row of `depth` activations takes.
  int64_t (*packed_size)(int64_t depth);
  // Activations of a row, widened to float in the order in which fp4_products reads them, zero-padded.
  void (*pack)(const float* row, int64_t depth, float* packed);
  void (*fp4_products)(const Fp4Tile& tile, const Rows& packed_rows, const Products& products);
  void (*plain_products)(const PlainTile& tile, const Rows& rows, const Products& products);
  void (*finish)(const Epilogue& epilogue, float* y);
  // y[i] += weight · x[i], or y[i] = weight · x[i] when `first`.
  void (*accumulate)(float weight, const float* x, int64_t count, bool first, float* y);
  void (*widen)(ElementType type, const void* source, int64_t count, float* target);
  void (*narrow)(ElementType type, const float* source, int64_t count, void* target);
};

// Most rows that a driver hands to a kernel at once.
inline constexpr int64_t kMaxRows = 64;

}  // namespace onnx_moe
