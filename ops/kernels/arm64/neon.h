// NEON (every arm64 machine): four lanes. Compiled with the dot product extension, int8 dot products take one
// instruction; with the int8 matrix extension, products of two rows with two rows.
#pragma once

#include <arm_neon.h>

#include "kernels/vector/vector_kernel.h"

namespace onnx_moe {

namespace {

struct Neon {
  using Vector = float32x4_t;
  using Ints = int32x4_t;
  using Index = uint8x16_t;
  typedef uint32_t Words __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 32;
  static constexpr int kStreamRows = 4;
  static constexpr int kPanelVectors = 4;
  static constexpr int kFloatRows = 6;  // 6 × 4 sums in 32 registers
#ifdef __ARM_FEATURE_MATMUL_INT8
  static constexpr bool kMatrixDot = true;
  static constexpr int kIntRows = 4;  // two pairs × 8 sums of integers; the floats wait in memory
#else
  static constexpr bool kMatrixDot = false;
  static constexpr int kIntRows = 3;  // 3 × 4 sums of integers, and as many of floats
#endif
  static constexpr int kInterleavedVectors = 1;
  static constexpr int kPlainRows = 4;   // 4 rows × 4 weight rows
  static constexpr int kWeightBias = 0;  // products of signed bytes
#ifdef __ARM_FEATURE_DOTPROD
  static constexpr bool kFastDot = true;
#else
  static constexpr bool kFastDot = false;
#endif
  static constexpr bool kWordSums = false;

  static constexpr int stream_rows(int limbs) { return limbs == 1 ? 6 : limbs == 2 ? 3 : 4; }
  static constexpr int interleaved_block(int) { return 8; }
  static constexpr int64_t interleaved_rows(int limbs, bool) { return limbs == 1 ? 16 : 8; }

  static Vector zero() { return vdupq_n_f32(0.0f); }
  static Vector load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Vector v) { vst1q_f32(p, v); }
  static Vector broadcast(const float* p) { return vld1q_dup_f32(p); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector multiply(Vector a, Vector b) { return vmulq_f32(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  static float sum(Vector v) { return vaddvq_f32(v); }
  static void sum_4(const Vector (&v)[4], float* sums) {
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])));
  }

  static Ints zero_ints() { return vdupq_n_s32(0); }
  static Ints load_ints(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
  static void store_ints(uint8_t* p, Ints v) { vst1q_u8(p, vreinterpretq_u8_s32(v)); }
  static Ints broadcast_dword(const uint8_t* p) {
    int32_t dword;
    __builtin_memcpy(&dword, p, sizeof dword);
    return vdupq_n_s32(dword);
  }
  static Words to_words(Ints v) { return reinterpret_cast<Words>(v); }
  static Vector from_words(Words v) { return reinterpret_cast<Vector>(v); }
  static Vector to_float(Ints v) { return vcvtq_f32_s32(v); }
  static Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
  static Ints shift_limb(Ints v) { return vshlq_n_s32(v, 8); }

  // kLanes bytes as dwords.
  static Words load_bytes(const uint8_t* p) {
    uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const uint8x8_t codes = vreinterpret_u8_u32(vdup_n_u32(bytes));
    return reinterpret_cast<Words>(vmovl_u16(vget_low_u16(vmovl_u8(codes))));
  }

  // Twice the value of each low nibble; of each high nibble.
  static Ints low_codes(Ints codes) { return look_up(vandq_u8(vreinterpretq_u8_s32(codes), vdupq_n_u8(15))); }
  static Ints high_codes(Ints codes) { return look_up(vshrq_n_u8(vreinterpretq_u8_s32(codes), 4)); }

  // acc + Σ of four products of signed bytes in each lane.
  static Ints dot(Ints acc, Ints weights, Ints x) {
    const int8x16_t w = vreinterpretq_s8_s32(weights);
    const int8x16_t a = vreinterpretq_s8_s32(x);
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(acc, w, a);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a));  // at most 12 · 128: sums of two stay in 16 bits
    const int16x8_t high = vmull_high_s8(w, a);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
  }

  static Ints dot_dword(Ints acc, Ints weights, const uint8_t* x) { return dot(acc, weights, broadcast_dword(x)); }
  static void pace() {}  // as avx512.h; not measured here

#ifdef __ARM_FEATURE_MATMUL_INT8
  // Even and odd columns of four weight rows, to all eight columns of the first two and of the last two.
  static void zip_codes(Ints (&pair)[2]) {
    const Ints even = pair[0];
    const Ints odd = pair[1];
    pair[0] = vzip1q_s32(even, odd);
    pair[1] = vzip2q_s32(even, odd);
  }
  // Eight columns of two rows in out[0], the next eight in out[1]. The odd columns lie `odd` bytes behind the even
  // ones.
  static void zip_rows(const uint8_t* first, const uint8_t* second, int64_t odd, Ints (&out)[2]) {
    const int64x2_t a = vreinterpretq_s64_s32(vzip1q_s32(load_low(first), load_low(first + odd)));
    const int64x2_t b = vreinterpretq_s64_s32(vzip1q_s32(load_low(second), load_low(second + odd)));
    out[0] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
    out[1] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
  }
  // acc + [two rows of x] · [two rows of weights]ᵀ, the products of the first row of x first.
  static Ints matrix_dot(Ints acc, Ints x, Ints weights) {
    return vmmlaq_s32(acc, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(weights));
  }
  // Sums with the first two and the last two weight rows, to those of each row of x.
  static void unzip_sums(const Ints (&sums)[2], Ints& first, Ints& second) {
    const int64x2_t low = vreinterpretq_s64_s32(sums[0]);
    const int64x2_t high = vreinterpretq_s64_s32(sums[1]);
    second = vreinterpretq_s32_s64(vzip2q_s64(low, high));
    first = vreinterpretq_s32_s64(vzip1q_s64(low, high));
  }
#endif

  template <int Nibble>
  static Vector decode(Ints codes) {
    // One table lookup of four registers: bytes 4c … 4c + 3 of the table are the float of code c.
    uint8x16x4_t values;
    for (int i = 0; i < 4; ++i) values.val[i] = vreinterpretq_u8_f32(vld1q_f32(kE2M1 + 4 * i));
    uint32x4_t code = vreinterpretq_u32_s32(codes);
    if constexpr (Nibble > 0) code = vshrq_n_u32(code, 4 * Nibble);
    code = vandq_u32(code, vdupq_n_u32(15));
    const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100u), code, vdupq_n_u32(0x04040404u));
    return vreinterpretq_f32_u8(vqtbl4q_u8(values, vreinterpretq_u8_u32(bytes)));
  }

  static void load_transposed(const uint8_t* const* rows, int64_t offset, Ints (&out)[4]) {
    int32x4_t row[4];
    for (int i = 0; i < 4; ++i) row[i] = load_ints(rows[i] + offset);
    const int64x2_t low_01 = vreinterpretq_s64_s32(vzip1q_s32(row[0], row[1]));
    const int64x2_t low_23 = vreinterpretq_s64_s32(vzip1q_s32(row[2], row[3]));
    const int64x2_t high_01 = vreinterpretq_s64_s32(vzip2q_s32(row[0], row[1]));
    const int64x2_t high_23 = vreinterpretq_s64_s32(vzip2q_s32(row[2], row[3]));
    out[0] = vreinterpretq_s32_s64(vzip1q_s64(low_01, low_23));
    out[1] = vreinterpretq_s32_s64(vzip2q_s64(low_01, low_23));
    out[2] = vreinterpretq_s32_s64(vzip1q_s64(high_01, high_23));
    out[3] = vreinterpretq_s32_s64(vzip2q_s64(high_01, high_23));
  }

  static Index make_index(const int32_t (&lanes)[4]) {
    uint8_t bytes[16];
    for (int byte = 0; byte < 16; ++byte) bytes[byte] = static_cast<uint8_t>(4 * lanes[byte / 4] + byte % 4);
    return vld1q_u8(bytes);
  }
  static Vector permute(Vector v, Index index) {
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), index));
  }

  static Vector load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static void store_half(uint16_t* p, Vector v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  // The float16 in the low (high) half of each lane.
  static Vector low_half_to_float(Ints v) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vreinterpretq_u32_s32(v))));
  }
  static Vector high_half_to_float(Ints v) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(vreinterpretq_u32_s32(v), 16)));
  }

 private:
#ifdef __ARM_FEATURE_MATMUL_INT8
  static Ints load_low(const uint8_t* p) { return vreinterpretq_s32_u8(vcombine_u8(vld1_u8(p), vdup_n_u8(0))); }
#endif
  static Ints look_up(uint8x16_t nibbles) {
    alignas(16) static constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(kTwice), nibbles));
  }
};

}  // namespace

}  // namespace onnx_moe
