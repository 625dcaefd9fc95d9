// The vectorised kernel, one template for every instruction set. A file of its own compiles it with that set's flags
// and hands it an `Isa`: a vector of kLanes floats and some thirty primitives. Everything here is in an unnamed
// namespace, so that no function compiled for one instruction set can be linked into the code of another.
//
// FP4 codes are read as dwords: a dword is eight columns of a weight row. With few activation rows (stream.h) the lanes
// of a vector are successive dwords of one weight row; with more (panel.h) they are the same dword of many weight rows.
// Which path it is depends on the number of rows and the precision alone.
#pragma once

#include "kernels/vector/elementwise.h"
#include "kernels/vector/interleaved.h"
#include "kernels/vector/packed_row.h"
#include "kernels/vector/panel.h"
#include "kernels/vector/plain.h"
#include "kernels/vector/stream.h"

namespace onnx_moe {
namespace {

template <typename Isa>
struct VectorKernel {
  // The only packed form (packed_row.h).
  static constexpr PackedForms kIntegers = 1;

  static PackedForms forms(const Operands& operands, int64_t rows) {
    const int64_t few = operands.layout == WeightLayout::kRows ? Stream<Isa, 3>::most_rows(operands)
                                                               : InterleavedStream<Isa, 3>::most_rows(operands);
    return Isa::kFastDot || operands.precision != Precision::kFloat || rows <= few ? kIntegers : 0;
  }

  static void fp4_products(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
    switch (operands.precision) {
      case Precision::kFloat:
        // Three dot products take as long as the four multiply-adds that they replace, and decoding is faster.
        return products_of<3, std::conditional_t<Isa::kFastDot, IntPanel<Isa, 3>, FloatPanel<Isa>>>(operands, tile,
                                                                                                    rows, products);
      case Precision::kHalf:
        return products_of<2, IntPanel<Isa, 2>>(operands, tile, rows, products);
      case Precision::kInt8:
        return products_of<1, IntPanel<Isa, 1>>(operands, tile, rows, products);
    }
  }

  static constexpr Kernel make(const char* name, bool (*supported)()) {
    return {name,          supported,    packed_bytes<Isa>, forms,
            pack_integers, fp4_products, kNarrowProducts,   PlainProducts<Isa>::multiply,
            finish,        combine,      widen<Isa>,        narrow<Isa>};
  }

 private:
  static void pack_integers(const Operands& operands, PackedForms, const float* row, uint8_t* packed) {
    pack<Isa>(operands, row, packed);
  }

  template <int Limbs, typename Panel>
  static void products_of(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
    if (operands.layout == WeightLayout::kRows) {
      return products_of<Stream<Isa, Limbs>, PanelProducts<Isa, RowSource, Panel>>(operands, tile, rows, products);
    }
    products_of<InterleavedStream<Isa, Limbs>, PanelProducts<Isa, GroupSource, Panel>>(operands, tile, rows, products);
  }

  template <typename Few, typename Many>
  static void products_of(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
    if constexpr (!Few::kTakesAllRows) {
      if (rows.count > Few::most_rows(operands)) return Many::multiply(operands, tile, rows, products);
    }
    Few::multiply(operands, tile, rows, products);
  }
};

}  // namespace
}  // namespace onnx_moe
