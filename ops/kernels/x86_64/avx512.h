// AVX-512 (F, BW, DQ, VL): sixteen lanes. Compiled with VNNI and VBMI, int8 dot products and byte lookups take one
// instruction each. (BF16 dot products exist too, but run at half the rate of float multiply-adds on Xeons: no use.)
#pragma once

#include <immintrin.h>

#include "kernels/vector/vector_kernel.h"

namespace onnx_moe {

namespace {

struct Avx512 {
  using Vector = __m512;
  using Ints = __m512i;
  using Index = __m512i;
  typedef uint32_t Words __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  static constexpr int kStreamRows = 4;
  static constexpr int kPanelVectors = 2;
  static constexpr int kFloatRows = 8;  // 8 × 2 sums; more rows leave no registers for their addresses
  static constexpr bool kMatrixDot = false;
  static constexpr int kIntRows = 6;  // 6 × 2 sums of integers, and as many of floats
  static constexpr int kInterleavedVectors = 1;
  static constexpr int kPlainRows = 6;    // 6 rows × 4 weight rows
  static constexpr int kWeightBias = 12;  // vpdpbusd multiplies unsigned bytes by signed ones
#ifdef __AVX512VNNI__
  static constexpr bool kFastDot = true;
  static constexpr bool kWordSums = false;
#else
  static constexpr bool kFastDot = false;
  static constexpr bool kWordSums = true;
#endif

  static constexpr int stream_rows(int limbs) { return limbs == 1 ? 6 : limbs == 2 ? 3 : 4; }
  static constexpr int interleaved_block(int limbs) { return kWordSums && limbs == 3 ? 8 : 10; }
#ifdef __AVX512VBMI__
  // One lookup decodes a vector: with 32 rows at level 4 the path reached 73 % of the dot products' rate, a panel 64.
  static constexpr int64_t interleaved_rows(int, bool) { return kMaxRows; }
#else
  static constexpr int64_t interleaved_rows(int limbs, bool) { return limbs == 1 ? 20 : 10; }
#endif

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(Vector v) { return _mm512_reduce_add_ps(v); }

  static void sum_4(const Vector (&v)[4], float* sums) {
    const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const __m512 quads = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xEE));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }

  static Ints zero_ints() { return _mm512_setzero_si512(); }
  static Ints load_ints(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store_ints(uint8_t* p, Ints v) { _mm512_storeu_si512(p, v); }
  static Ints broadcast_dword(const uint8_t* p) {
    int32_t dword;
    __builtin_memcpy(&dword, p, sizeof dword);
    return _mm512_set1_epi32(dword);
  }
  static Words to_words(Ints v) { return reinterpret_cast<Words>(v); }
  static Vector from_words(Words v) { return reinterpret_cast<Vector>(v); }
  static Vector to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
  static Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints shift_limb(Ints v) { return _mm512_slli_epi32(v, 8); }

  // kLanes bytes as dwords.
  static Words load_bytes(const uint8_t* p) {
    return to_words(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  // 12 + twice the value of each low nibble; of each high nibble.
  static Ints low_codes(Ints codes) { return look_up(codes); }
  static Ints high_codes(Ints codes) { return look_up(_mm512_srli_epi16(codes, 4)); }

  // acc + Σ of four products, unsigned weights by signed activations, in each lane; of two in each word (kWordSums).
  static Ints dot(Ints acc, Ints weights, Ints x) {
#ifdef __AVX512VNNI__
    return _mm512_dpbusd_epi32(acc, weights, x);
#else
    __asm__("vpaddw %1, %0, %0" : "+v"(acc) : "v"(word_products(weights, x)));  // as avx2.h
    return acc;
#endif
  }
  // Σ of two products in each word: at most 2 · 24 · 128, no saturation.
  static Ints word_products(Ints weights, Ints x) { return _mm512_maddubs_epi16(weights, x); }
  // Of words: Σ of the two in each lane.
  static Ints add_words(Ints v) { return _mm512_madd_epi16(v, _mm512_set1_epi16(1)); }

  // The same with one dword of activations for all lanes, in one instruction. GCC makes two, with which the loop over
  // interleaved weights reached 84 % of the dot products' rate on an EPYC of 2022 instead of 87.
  static Ints dot_dword(Ints acc, Ints weights, const uint8_t* x) {
#ifdef __AVX512VNNI__
    typedef int32_t Dword __attribute__((may_alias, aligned(1)));
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(weights), "m"(*reinterpret_cast<const Dword*>(x)));
    return acc;
#else
    return dot(acc, weights, broadcast_dword(x));
#endif
  }

  // Lookups that nobody needs, for 32 columns and one activation row: the products of those take less time than memory
  // takes to send the next codes, and a loop that asks sooner is served later. One token of GLM-4.7-Flash's block took
  // 0.83 instead of 0.94 ms with one thread on an EPYC of 2022, and no longer with two; codes that the third cache
  // holds take 0.67 instead of 0.55. Four lookups made it 0.90 ms; six 0.81, but never less than 0.74, which memory at
  // its best allows.
  static void pace() {
#ifdef __AVX512VBMI__
#define ONNX_MOE_WAIT "vpermb %%zmm31, %%zmm31, %%zmm31\n"
    __asm__ volatile(ONNX_MOE_WAIT ONNX_MOE_WAIT ONNX_MOE_WAIT ONNX_MOE_WAIT ONNX_MOE_WAIT::: "xmm31");
#undef ONNX_MOE_WAIT
#endif
  }

  template <int Nibble>
  static Vector decode(Ints codes) {
    const __m512 values = _mm512_loadu_ps(kE2M1);  // vpermps reads just the low four bits of each lane
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * Nibble), values);
  }

  static void load_transposed(const uint8_t* const* rows, int64_t offset, Ints (&out)[4]) {
    __m512i quarter[4];
    for (int i = 0; i < 4; ++i) {
      const auto row = [&](int lane) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[4 * lane + i] + offset));
      };
      quarter[i] = _mm512_inserti32x4(
          _mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1), row(2), 2), row(3), 3);
    }
    const __m512i low_01 = _mm512_unpacklo_epi32(quarter[0], quarter[1]);
    const __m512i low_23 = _mm512_unpacklo_epi32(quarter[2], quarter[3]);
    const __m512i high_01 = _mm512_unpackhi_epi32(quarter[0], quarter[1]);
    const __m512i high_23 = _mm512_unpackhi_epi32(quarter[2], quarter[3]);
    out[0] = _mm512_unpacklo_epi64(low_01, low_23);
    out[1] = _mm512_unpackhi_epi64(low_01, low_23);
    out[2] = _mm512_unpacklo_epi64(high_01, high_23);
    out[3] = _mm512_unpackhi_epi64(high_01, high_23);
  }

  static Index make_index(const int32_t (&lanes)[16]) { return _mm512_loadu_si512(lanes); }
  static Vector permute(Vector v, Index index) { return _mm512_permutexvar_ps(index, v); }

  static Vector load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_half(uint16_t* p, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  // The float16 in the low (high) half of each lane.
  static Vector low_half_to_float(Ints v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
  static Vector high_half_to_float(Ints v) { return low_half_to_float(_mm512_srli_epi32(v, 16)); }

 private:
  static Ints look_up(Ints codes) {
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
#ifdef __AVX512VBMI__
    return _mm512_permutexvar_epi8(codes, table);  // reads six bits of each byte; the table repeats every sixteen
#else
    return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
#endif
  }
};

}  // namespace

}  // namespace onnx_moe
