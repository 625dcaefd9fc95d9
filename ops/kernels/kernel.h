// What a kernel is: the arithmetic of the operators for one instruction set. A kernel knows nothing of ONNX Runtime,
// of threads or of routing; the drivers in core/ hand it tiles.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/element_type.h"
#include "core/fp4.h"

namespace onnx_moe {

// What the activations may be rounded to: 24 bits, 16 bits or 8 bits, with a scale for every 32 of them. The weights
// are exact in all three.
enum class Precision : int32_t { kFloat, kHalf, kInt8 };

// The packed forms of an activation row that a kernel has, a bit for each; 0 means the floats themselves.
using PackedForms = uint32_t;

// Activation rows of depth K. `values` are floats, `packed` is what the kernel's `pack` made of them: at least the
// forms that `forms` named for so many rows.
struct Rows {
  const float* const* values;
  const uint8_t* const* packed;
  int64_t count;
};

// Where a tile's products go: value (row, column) of a band to data[row * stride + band * band_stride + column].
// Kernels write whole panels: band_stride has room for `columns` rounded up to kMaxPanelRows / bands.
struct Products {
  float* data;
  int64_t stride;
  int64_t band_stride;
};
// Most weight rows that a kernel decodes together; a divisor of it for the others.
inline constexpr int64_t kMaxPanelRows = 32;

// What every tile of a call has in common: the form of the weights, that of the activations, and their depth.
struct Operands {
  BlockFormat format;
  WeightLayout layout;
  Precision precision;
  int64_t depth;  // K

  // Of one weight row; rows of the interleaved layout have these bytes on average.
  int64_t row_bytes() const { return depth / 2; }
  int64_t scale_row_bytes() const { return format.blocks(depth) * format.scale_bytes(); }
};

// Weight rows first, first + step, …: the rows of the gate, of the up projection, or of both when nothing is gated.
struct WeightBand {
  int64_t first;
  int64_t step;
};

// `columns` output columns of one expert: y = W · x, block scales included. Of interleaved weights: whole groups.
struct Fp4Tile {
  const uint8_t* codes;   // of the expert: [N, K / 2], in the layout of the operands
  const uint8_t* scales;  // of the expert: [N, K / block], likewise
  int64_t columns;        // of each band
  int bands;              // 2 when gated
  WeightBand band[2];
  const Fp4Tile* next;  // the tile that this thread works on next, for prefetching; null if there is none
};

// Plain weights [N, K] (the router's matrix).
struct PlainTile {
  ElementType type;
  const void* weights;
  int64_t depth;
  int64_t first;
  int64_t columns;
};

// Rows of products on their way out: y = activation(gate · gate_scale + gate_bias, up · up_scale + up_bias).
// Gate and up are the bands of `products`; up is unused when not gated. Biases may be null.
struct Epilogue {
  const Activation* activation;
  Products products;
  float gate_scale;
  float up_scale;
  const float* gate_bias;
  const float* up_bias;
  int64_t columns;
};

// Floats of products that a kernel with many rows computes in one call, at most. Few stay in the first cache on their
// way to the epilogue; many let a kernel that gathers its rows gather them seldom.
inline constexpr int64_t kNarrowProducts = 8192;
inline constexpr int64_t kWideProducts = 32768;

struct Kernel {
  const char* name;
  bool (*supported)();
  // Bytes of a packed row, all forms together; a multiple of 64.
  int64_t (*packed_bytes)(const Operands& operands);
  // What fp4_products reads of this many rows.
  PackedForms (*forms)(const Operands& operands, int64_t rows);
  void (*pack)(const Operands& operands, PackedForms forms, const float* row, uint8_t* packed);
  void (*fp4_products)(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products);
  int64_t product_floats;  // kNarrowProducts or kWideProducts
  void (*plain_products)(const PlainTile& tile, const float* const* rows, int64_t count, const Products& products);
  // Row r of the result goes to y[r].
  void (*finish)(const Epilogue& epilogue, int64_t rows, float* const* y);
  // y[c] = Σ_s weights[s] · rows[s · columns + c], summed in the order of the slots.
  void (*combine)(const float* weights, const float* rows, int64_t slots, int64_t columns, float* y);
  void (*widen)(ElementType type, const void* source, int64_t count, float* target);
  void (*narrow)(ElementType type, const float* source, int64_t count, void* target);
  // Asks the system for what the kernel needs beyond the processor, once it is chosen; false where that is refused.
  bool (*enable)() = nullptr;
};

// Most rows that a driver hands to a kernel at once.
inline constexpr int64_t kMaxRows = 256;

}  // namespace onnx_moe
