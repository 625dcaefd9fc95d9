// The FP4 codec: 16 E2M1 codes at a time, and the scale of their block.
#pragma once

#include <metal_stdlib>

constant uint FORMAT [[function_constant(0)]];  // 0 mxfp4, 1 nvfp4, 2 fp4
constant uint BLOCK_SIZE [[function_constant(1)]];

constant constexpr uint MXFP4 = 0;
constant constexpr uint NVFP4 = 1;

// Codes are decoded 2^14 too small: a code's exponent and mantissa are those of a half, but for the bias.
constant constexpr float CODE_UNIT = 16384.0f;

// A scale as two factors, so that neither 2^-127 nor its product with CODE_UNIT leaves the normal floats.
struct BlockScale {
  float unit;
  float scale;
};

inline BlockScale e8m0(uint code) {
  const uint exponent = code == 0 ? 1u : code;
  const uint bits = code == 255 ? 0x7FC00000u : exponent << 23;
  return {code == 0 ? CODE_UNIT * 0.5f : CODE_UNIT, as_type<float>(bits)};
}

// Without infinities: 0x7F and 0xFF are NaN.
inline BlockScale e4m3(uint code) {
  const uint magnitude = code & 0x7Fu;
  const float subnormal = float(magnitude) * 0.001953125f;  // 2^-9
  const float normal = as_type<float>((magnitude << 20) + (120u << 23));
  float scale = magnitude < 8 ? subnormal : normal;
  scale = magnitude == 0x7Fu ? as_type<float>(0x7FC00000u) : scale;
  return {CODE_UNIT, (code & 0x80u) != 0 ? -scale : scale};
}

inline BlockScale load_scale(device const uchar* scales, ulong block) {
  if (FORMAT == MXFP4) return e8m0(scales[block]);
  if (FORMAT == NVFP4) return e4m3(scales[block]);
  return {CODE_UNIT, float(((device const half*)scales)[block])};
}

// Codes j and j + 4 of a word's eight, in units of 2^-14: their low three bits moved to where halves have exponent and
// mantissa, their signs to the top. Two shifts and two logical operations for two codes.
inline half2 decode_pair(uint word, uint j) {
  const uint magnitudes = j < 3 ? word << (9 - 4 * j) : word >> 3;
  const uint signs = word << (12 - 4 * j);
  return as_type<half2>((magnitudes & 0x0E000E00u) | (signs & 0x80008000u));
}
