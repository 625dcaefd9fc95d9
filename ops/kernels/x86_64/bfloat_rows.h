// Activations as sums of bfloat16 values ("limbs"): x = high + middle + low, each the eight leading bits of what is
// left. Three limbs are a float exactly, two its sixteen leading bits, one is x rounded to bfloat16. (What is far below
// 2^-100 is lost: tiles take subnormal values for zero.)
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/vector/packed_row.h"
#include "kernels/x86_64/tiles.h"

namespace onnx_moe {
namespace {

// Columns of one product of tiles: a tile's row holds so many bfloat16 values.
constexpr int64_t kStepColumns = 32;

inline int64_t steps_of(int64_t columns) { return (columns + kStepColumns - 1) / kStepColumns; }

// Bytes of a row: limb after limb, each padded with zeros to whole steps.
inline int64_t bfloat_row_bytes(const Operands& operands) {
  return limbs_of(operands.precision) * steps_of(operands.depth) * kTileRowBytes;
}

// The eight leading bits of each float, which are a bfloat16: taking them, unlike rounding, can not overflow.
ONNX_MOE_INLINE inline __m512 leading_bits(__m512 values) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(~0xFFFF)));
}

ONNX_MOE_INLINE inline __m256i to_bfloat(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

template <int Limbs>
void pack_bfloat_row(const Operands& operands, const float* row, uint8_t* packed) {
  const int64_t limb_bytes = steps_of(operands.depth) * kTileRowBytes;
  for (int64_t column = 0; column < steps_of(operands.depth) * kStepColumns; column += 16) {
    const int64_t left = std::clamp<int64_t>(operands.depth - column, 0, 16);
    __m512 rest = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << left) - 1u), row + column);
    uint8_t* target = packed + column * 2;
    for (int limb = 0; limb < Limbs; ++limb, target += limb_bytes) {
      const __m512 value = limb + 1 < Limbs ? leading_bits(rest) : rest;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), to_bfloat(value));
      rest = _mm512_sub_ps(rest, value);
    }
  }
}

inline void pack_bfloat_row(const Operands& operands, const float* row, uint8_t* packed) {
  switch (limbs_of(operands.precision)) {
    case 3:
      return pack_bfloat_row<3>(operands, row, packed);
    case 2:
      return pack_bfloat_row<2>(operands, row, packed);
    default:
      return pack_bfloat_row<1>(operands, row, packed);
  }
}

// A part of the columns of packed rows, gathered as tiles take them: [step][limb][row]. Rows lie apart, but a tile is
// loaded from rows at one distance.
template <int Limbs, int64_t Columns>
class GatheredRows {
 public:
  // Rows that are multiplied at once; a panel of weights is decoded for so many.
  static constexpr int64_t kMostRows = Limbs == 1 ? 256 : 128;

  // `packed`: rows as pack_bfloat_row made them.
  void gather(const Operands& operands, const uint8_t* const* packed, int64_t rows, int64_t start, int64_t end) {
    rows_ = rows;
    const int64_t limb_bytes = steps_of(operands.depth) * kTileRowBytes;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t step = 0; step < steps_of(end - start); ++step) {
        const uint8_t* source = packed[row] + (start / kStepColumns + step) * kTileRowBytes;
        for (int limb = 0; limb < Limbs; ++limb) {
          std::memcpy(data_ + offset(step, limb, row), source + limb * limb_bytes, kTileRowBytes);
        }
      }
    }
  }

  const uint8_t* tile(int64_t step, int limb, int64_t row) const { return data_ + offset(step, limb, row); }

 private:
  int64_t offset(int64_t step, int limb, int64_t row) const {
    return ((step * Limbs + limb) * rows_ + row) * kTileRowBytes;
  }

  int64_t rows_ = 0;
  alignas(64) uint8_t data_[Columns / kStepColumns * Limbs * kMostRows * kTileRowBytes];
};

}  // namespace
}  // namespace onnx_moe
