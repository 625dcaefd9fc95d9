// Block scales of the three formats as floats.
#pragma once

#include <cstring>

#include "kernels/kernel.h"
#include "kernels/vector/inline.h"
#include "kernels/vector/packed_row.h"

namespace onnx_moe {
namespace {

// float_from_e8m0 and float_from_e4m3 (core/fp4.h) on a vector of dwords: the compiler, left to vectorise a loop over
// a row's 32 or 64 scales, leaves a scalar rest that costs more than the scales.
template <typename Isa>
struct ScaleDecoder {
  using Words = typename Isa::Words;

  ONNX_MOE_INLINE static Words from_e8m0(Words codes) {
    const Words bits = codes << 23;
    return (bits < 0x00400000u ? 0x00400000u : bits) | (Words(codes == 255u) & 0x00400000u);
  }

  ONNX_MOE_INLINE static Words from_e4m3(Words codes) {
    const Words magnitude = codes & 0x7Fu;
    const Words shifted = magnitude << 20;
    const Words subnormal = (Words)((typename Isa::Floats)(shifted + (121u << 23)) - 0x1p-6f);
    const Words normal = (shifted + (120u << 23)) | (Words(magnitude == 0x7Fu) & 0x7FC00000u);
    return (magnitude < 8u ? subnormal : normal) | (codes & 0x80u) << 24;
  }

  // kLanes scales at `source`; the format is that of 8-bit scales.
  ONNX_MOE_INLINE static typename Isa::Vector from_bytes(Format format, Words codes) {
    return Isa::from_words(format == Format::kMxfp4 ? from_e8m0(codes) : from_e4m3(codes));
  }
};

// kLanes scales.
template <typename Isa>
ONNX_MOE_INLINE inline typename Isa::Vector load_scales(Format format, const uint8_t* source) {
  if (format == Format::kFp4) return Isa::load_half(reinterpret_cast<const uint16_t*>(source));
  return ScaleDecoder<Isa>::from_bytes(format, Isa::load_bytes(source));
}

// Scales of a weight row, a vector at a time, kept in registers: a load of scales that had just been stored would wait
// for the stores to retire, which wait for memory behind the fetches that keep a stream going.
template <typename Isa>
ONNX_MOE_INLINE inline typename Isa::Vector load_scales(Format format, const uint8_t* source, int64_t count) {
  alignas(64) uint8_t last[2 * Isa::kLanes] = {};
  if (count < Isa::kLanes) {
    std::memcpy(last, source, static_cast<size_t>(format == Format::kFp4 ? 2 * count : count));
    source = last;
  }
  return load_scales<Isa>(format, source);
}

// Whether arithmetic on exponents is as good as float's for every scale in `bytes`: none is infinite or NaN, and none
// is so large or small that a weight overflows, or that a product with a common activation is a subnormal number.
inline bool scales_fit(Format format, const uint8_t* scales, int64_t bytes) {
  constexpr uint8_t kLeast = kExponentBias - kMostExponent;
  constexpr uint8_t kRange = 2 * kMostExponent;
  uint8_t misfits = 0;  // bytes, not bools: these loops become vectors
  uint8_t most = 0;
  switch (format) {
    case Format::kMxfp4:
      for (int64_t i = 0; i < bytes; ++i) most = std::max(most, static_cast<uint8_t>(scales[i] - kLeast));
      misfits = most > kRange ? 1 : 0;
      break;
    case Format::kNvfp4:
      for (int64_t i = 0; i < bytes; ++i) misfits |= (scales[i] & 0x7F) == 0x7F ? 1 : 0;
      break;
    case Format::kFp4:
      for (int64_t i = 1; i < bytes; i += 2) misfits |= (scales[i] & 0x7C) == 0x7C ? 1 : 0;
      break;
  }
  return misfits == 0;
}

// A vector of block scales, which scales sums of integer products together with the scale of an activation row.
template <typename Isa, Format kFormat>
class FactorScales {
 public:
  using Vector = typename Isa::Vector;

  ONNX_MOE_INLINE explicit FactorScales(const uint8_t* source) : factors_(load_scales<Isa>(kFormat, source)) {}

  ONNX_MOE_INLINE inline Vector add(Vector products, const uint8_t* x_scale, Vector sum) const {
    // The product of both scales may be beyond float's range where this is not.
    const Vector scaled = Isa::multiply(products, Isa::broadcast(reinterpret_cast<const float*>(x_scale)));
    return Isa::multiply_add(scaled, factors_, sum);
  }

 private:
  Vector factors_;
};

// The same where the scales are powers of two that fit (scales_fit), as do the activations' (all_fit): the product of
// both is an integer sum, with the bits of the float product. Multiplications wait for the units of the dot products,
// which are the limit; integer sums have more units. The loop over interleaved weights went from 73 to 84 % of the
// dot products' rate on an EPYC of 2022.
template <typename Isa>
class ExponentScales {
 public:
  using Vector = typename Isa::Vector;

  ONNX_MOE_INLINE explicit ExponentScales(const uint8_t* source)
      : exponents_((Isa::load_bytes(source) - static_cast<uint32_t>(kExponentBias)) << kMantissaBits) {}

  ONNX_MOE_INLINE inline Vector add(Vector products, const uint8_t* x_scale, Vector sum) const {
    const Vector factors = Isa::from_words(Isa::to_words(Isa::broadcast_dword(x_scale)) + exponents_);
    return Isa::multiply_add(products, factors, sum);
  }

 private:
  static constexpr int kMantissaBits = 23;

  typename Isa::Words exponents_;
};

// Which scale each lane takes: a lane is eight columns, and the vectors of a span share one vector of scales (two where
// a chunk of 128 columns has more blocks than lanes).
template <typename Isa>
struct ScaleSpread {
  static constexpr int64_t kVectorColumns = 8 * Isa::kLanes;
  static constexpr int kScaleVectors = Isa::kLanes < 8 ? 2 : 1;
  static constexpr int64_t kMaxBlock = 128;

  int64_t span;  // columns
  typename Isa::Index index[kMaxBlock / 8 < 16 ? 16 : kMaxBlock / 8];

  explicit ScaleSpread(int64_t block_size) : span(block_size * Isa::kLanes < 128 ? 128 : block_size * Isa::kLanes) {
    const int shift = __builtin_ctzll(static_cast<uint64_t>(block_size));
    for (int64_t vector = 0; vector < span / kVectorColumns; ++vector) {
      int32_t lanes[Isa::kLanes];
      for (int lane = 0; lane < Isa::kLanes; ++lane) {
        lanes[lane] = static_cast<int32_t>((vector * kVectorColumns + 8 * lane) >> shift) % Isa::kLanes;
      }
      index[vector] = Isa::make_index(lanes);
    }
  }
};

}  // namespace
}  // namespace onnx_moe
