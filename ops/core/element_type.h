// Element types of activations, with ONNX's numbers, and scalar conversions. Kernels bring vectorised ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace onnx_moe {

enum class ElementType : int32_t { kFloat = 1, kFloat16 = 10, kBFloat16 = 16 };

constexpr size_t element_size(ElementType type) { return type == ElementType::kFloat ? 4 : 2; }

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_from_bfloat16(uint16_t bits) { return float_from_bits(uint32_t{bits} << 16); }

// Round to nearest even; a NaN stays a (quiet) NaN.
inline uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float float_from_float16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  if (magnitude >= 0x7C00u) return float_from_bits(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude >= 0x0400u) return float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

// Round to nearest even; overflow gives infinity, a NaN stays a (quiet) NaN.
inline uint16_t float16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    // Adding 0.5 puts the unit of 2^-24 at the end of the mantissa, so that the addition rounds to nearest even.
    return sign | static_cast<uint16_t>(bits_from_float(float_from_bits(magnitude) + 0.5f) - bits_from_float(0.5f));
  }
  return sign | static_cast<uint16_t>((magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13);
}

inline float load_element(ElementType type, const void* data, int64_t index) {
  if (type == ElementType::kFloat) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return type == ElementType::kFloat16 ? float_from_float16(bits) : float_from_bfloat16(bits);
}

inline void store_element(ElementType type, float value, void* data, int64_t index) {
  if (type == ElementType::kFloat) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] =
        type == ElementType::kFloat16 ? float16_from_float(value) : bfloat16_from_float(value);
  }
}

inline const void* element_at(ElementType type, const void* data, int64_t index) {
  return static_cast<const char*>(data) + index * static_cast<int64_t>(element_size(type));
}

inline void* element_at(ElementType type, void* data, int64_t index) {
  return static_cast<char*>(data) + index * static_cast<int64_t>(element_size(type));
}

}  // namespace onnx_moe
