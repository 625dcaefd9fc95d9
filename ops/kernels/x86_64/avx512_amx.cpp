// AVX-512 with AMX: many activation rows are multiplied by tiles of bfloat16 (tile_products.h); everything else is as
// in avx512_vbmi.
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/x86_64/features.h"
#include "kernels/x86_64/tile_products.h"

namespace onnx_moe {

extern const Kernel kAvx512VbmiKernel;

namespace {

// Rows of an expert from which on decoding a panel for tiles costs less than multiplying registers with each row; with
// eight rows an expert, a block at level 0 took 94 ms by tiles against 100 where weights are interleaved, and 146
// against 100 where they lie row by row, whose parts are short runs of memory.
int64_t least_tile_rows(const Operands& operands) {
  if (operands.precision == Precision::kInt8) return operands.layout == WeightLayout::kRows ? 9 : 11;
  return operands.layout == WeightLayout::kRows ? 12 : 5;
}

bool by_tiles(const Operands& operands, int64_t rows) { return rows >= least_tile_rows(operands); }

constexpr PackedForms kIntegers = 1;
constexpr PackedForms kBfloats = 2;

PackedForms forms(const Operands& operands, int64_t rows) { return by_tiles(operands, rows) ? kBfloats : kIntegers; }

// A packed row: the integers, then the bfloats.
int64_t bfloats_offset(const Operands& operands) { return kAvx512VbmiKernel.packed_bytes(operands); }

int64_t both_bytes(const Operands& operands) { return bfloats_offset(operands) + bfloat_row_bytes(operands); }

void pack_forms(const Operands& operands, PackedForms forms, const float* row, uint8_t* packed) {
  if (forms & kIntegers) kAvx512VbmiKernel.pack(operands, forms, row, packed);
  if (forms & kBfloats) pack_bfloat_row(operands, row, packed + bfloats_offset(operands));
}

// Scales of the tile's weight rows, and of those between them.
bool scales_fit(const Operands& operands, const Fp4Tile& tile) {
  for (int b = 0; b < tile.bands; ++b) {
    const WeightBand& band = tile.band[b];
    const WeightRun run{&operands, tile.codes + band.first * operands.row_bytes(),
                        tile.scales + band.first * operands.scale_row_bytes(), (tile.columns - 1) * band.step + 1};
    if (!scales_fit(operands.format.format, run.scales, run.rows * operands.scale_row_bytes()) &&
        !misfits_are_zeros(run)) {
      return false;
    }
  }
  return true;
}

template <template <typename> typename SourceOf, Format kFormat>
void multiply(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
  if (!scales_fit(operands, tile)) {
    return PanelProducts<Avx512, SourceOf, FloatPanel<Avx512>>::multiply(operands, tile, rows, products);
  }
  const uint8_t* packed[kMaxRows];
  for (int64_t row = 0; row < rows.count; ++row) packed[row] = rows.packed[row] + bfloats_offset(operands);
  switch (limbs_of(operands.precision)) {
    case 3:
      return TileProducts<SourceOf, kFormat, 3>::multiply(operands, tile, packed, rows.count, products);
    case 2:
      return TileProducts<SourceOf, kFormat, 2>::multiply(operands, tile, packed, rows.count, products);
    default:
      return TileProducts<SourceOf, kFormat, 1>::multiply(operands, tile, packed, rows.count, products);
  }
}

template <Format kFormat>
void multiply(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
  if (operands.layout == WeightLayout::kRows) return multiply<RowSource, kFormat>(operands, tile, rows, products);
  multiply<GroupSource, kFormat>(operands, tile, rows, products);
}

void fp4_products(const Operands& operands, const Fp4Tile& tile, const Rows& rows, const Products& products) {
  if (!by_tiles(operands, rows.count)) return kAvx512VbmiKernel.fp4_products(operands, tile, rows, products);
  switch (operands.format.format) {
    case Format::kMxfp4:
      return multiply<Format::kMxfp4>(operands, tile, rows, products);
    case Format::kNvfp4:
      return multiply<Format::kNvfp4>(operands, tile, rows, products);
    case Format::kFp4:
      return multiply<Format::kFp4>(operands, tile, rows, products);
  }
}

constexpr long kTileData = 18;  // the tiles' number among the parts of a thread's state

bool supported() {
  constexpr long kSupportedState = 0x1021;
  uint64_t state = 0;
  return kAvx512VbmiKernel.supported() && has_bfloat_tiles() && syscall(SYS_arch_prctl, kSupportedState, &state) == 0 &&
         (state >> kTileData & 1) != 0;
}

// Linux lets a process use tiles once it has asked: their registers make every signal frame larger.
bool enable() {
  constexpr long kRequestPermission = 0x1023;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// avx512_vbmi's functions, which are not known while this file is compiled.
void plain_products(const PlainTile& tile, const float* const* rows, int64_t count, const Products& products) {
  kAvx512VbmiKernel.plain_products(tile, rows, count, products);
}
void finish_rows(const Epilogue& epilogue, int64_t rows, float* const* y) {
  kAvx512VbmiKernel.finish(epilogue, rows, y);
}
void combine_rows(const float* weights, const float* rows, int64_t slots, int64_t columns, float* y) {
  kAvx512VbmiKernel.combine(weights, rows, slots, columns, y);
}
void widen_elements(ElementType type, const void* source, int64_t count, float* target) {
  kAvx512VbmiKernel.widen(type, source, count, target);
}
void narrow_elements(ElementType type, const float* source, int64_t count, void* target) {
  kAvx512VbmiKernel.narrow(type, source, count, target);
}

}  // namespace

extern const Kernel kAvx512AmxKernel;
constexpr Kernel kAvx512AmxKernel = {"avx512_amx",   supported,       both_bytes,     forms,       pack_forms,
                                     fp4_products,   kWideProducts,   plain_products, finish_rows, combine_rows,
                                     widen_elements, narrow_elements, enable};

}  // namespace onnx_moe
