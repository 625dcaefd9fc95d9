// NEON (every arm64 machine): four lanes; a code is decoded by one table lookup of four registers.
#include <arm_neon.h>

#include "kernels/vector_kernel.h"

namespace onnx_moe {

namespace {

struct Neon {
  using Vector = float32x4_t;
  using Codes = uint32x4_t;
  using Index = uint8x16_t;
  typedef uint32_t Words __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kRowBlock = 4;  // 4 rows × 4 weight rows = 16 of 32 registers

  static Vector zero() { return vdupq_n_f32(0.0f); }
  static Vector load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Vector v) { vst1q_f32(p, v); }
  static Vector multiply(Vector a, Vector b) { return vmulq_f32(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  static float sum(Vector v) { return vaddvq_f32(v); }
  static void sum_4(const Vector (&v)[4], float* sums) {
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])));
  }

  static Codes load_codes(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }

  // kLanes bytes as dwords.
  static Words load_bytes(const uint8_t* p) {
    uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const uint8x8_t codes = vreinterpret_u8_u32(vdup_n_u32(bytes));
    return reinterpret_cast<Words>(vmovl_u16(vget_low_u16(vmovl_u8(codes))));
  }

  template <int Nibble>
  static Vector decode(Codes codes) {
    uint8x16x4_t values;
    for (int i = 0; i < 4; ++i) values.val[i] = vreinterpretq_u8_f32(vld1q_f32(kE2M1 + 4 * i));
    uint32x4_t code = codes;
    if constexpr (Nibble > 0) code = vshrq_n_u32(codes, 4 * Nibble);
    code = vandq_u32(code, vdupq_n_u32(15));
    // Bytes 4c … 4c + 3 of the table are the float of code c.
    const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100u), code, vdupq_n_u32(0x04040404u));
    return vreinterpretq_f32_u8(vqtbl4q_u8(values, vreinterpretq_u8_u32(bytes)));
  }

  static Index index_of_lanes(int64_t block_size) {
    uint8_t index[16];
    for (int byte = 0; byte < 16; ++byte) {
      index[byte] = static_cast<uint8_t>(8 * (byte / 4) / block_size * 4 + byte % 4);
    }
    return vld1q_u8(index);
  }
  static Vector permute(Vector v, Index index) {
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), index));
  }

  static Vector load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static void store_half(uint16_t* p, Vector v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }

  // target[j·4 + i] = source[8i + j].
  static void transpose_8(const float* source, float* target) {
    for (int j = 0; j < 8; ++j) {
      for (int i = 0; i < kLanes; ++i) target[j * kLanes + i] = source[8 * i + j];
    }
  }
};

bool supported() { return true; }

}  // namespace

extern const Kernel kNeonKernel;
const Kernel kNeonKernel = VectorKernel<Neon>::make("neon", supported);

}  // namespace onnx_moe
