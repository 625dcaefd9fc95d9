// The FP4 formats: E2M1 codes in blocks that share a scale (OCP Microscaling Formats 1.0; NVFP4).
#pragma once

#include <cstdint>

#include "core/element_type.h"

namespace onnx_moe {

enum class Format : int32_t { kMxfp4 = 0, kNvfp4 = 1, kFp4 = 2 };

// Value of each code; bit 3 is the sign.
inline constexpr float kE2M1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
inline constexpr float kE2M1Max = 6.0f;
inline constexpr float kE4M3Max = 448.0f;

struct BlockFormat {
  Format format;
  int64_t block_size;

  int64_t scale_bytes() const { return format == Format::kFp4 ? 2 : 1; }
  int64_t blocks(int64_t columns) const { return columns / block_size; }
};

// How the weights of a matrix [N, K] lie. kRows: row by row. kInterleaved: in groups of kGroupRows rows, whose codes
// lie as [K / 8, kGroupRows, 4 bytes] and whose scales as [K / block, kGroupRows], so that a vector that a kernel loads
// holds the same columns of successive rows, and that reading a group is reading one run of memory.
enum class WeightLayout : int32_t { kRows = 0, kInterleaved = 1 };
inline constexpr int64_t kGroupRows = 16;

// The block format that `block_size` (0: the format's own) asks for; an Error names what is legal.
BlockFormat make_block_format(Format format, int64_t block_size);
const char* format_name(Format format);

// 2^(code - 127); 0 is 2^-127 and 255 is NaN. Free of branches, so that loops over it vectorise.
inline float float_from_e8m0(uint8_t code) {
  uint32_t bits = uint32_t{code} << 23;
  bits = bits < 0x00400000u ? 0x00400000u : bits;
  bits |= uint32_t{code == 255} << 22;
  return float_from_bits(bits);
}

// E4M3 without infinities: 0x7F and 0xFF are NaN. Free of branches, likewise: a subnormal m·2^-9 is built as
// (1 + m/8)·2^-6 − 2^-6, so that no float subnormal, slow on some machines, occurs.
inline float float_from_e4m3(uint8_t code) {
  const uint32_t magnitude = code & 0x7Fu;
  const uint32_t shifted = magnitude << 20;
  const float subnormal = float_from_bits(shifted + (121u << 23)) - 0x1p-6f;
  const uint32_t normal = magnitude == 0x7Fu ? 0x7FC00000u : shifted + (120u << 23);
  const uint32_t bits = magnitude < 8u ? bits_from_float(subnormal) : normal;
  return float_from_bits(bits | (uint32_t{code} & 0x80u) << 24);
}

inline float load_scale(Format format, const void* scales, int64_t index) {
  if (format == Format::kFp4) return float_from_float16(static_cast<const uint16_t*>(scales)[index]);
  const uint8_t code = static_cast<const uint8_t*>(scales)[index];
  return format == Format::kMxfp4 ? float_from_e8m0(code) : float_from_e4m3(code);
}

inline float load_code(const uint8_t* codes, int64_t index) {
  return kE2M1[(codes[index >> 1] >> (4 * (index & 1))) & 15];
}

}  // namespace onnx_moe
