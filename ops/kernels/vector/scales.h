// Block scales of the three formats as floats.
#pragma once

#include <cstring>

#include "kernels/kernel.h"
#include "kernels/vector/inline.h"

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
