// AVX2 with FMA and F16C: eight lanes. Compiled with AVX-VNNI, int8 dot products take one instruction.
#pragma once

#include <immintrin.h>

#include "kernels/vector/vector_kernel.h"

namespace onnx_moe {

namespace {

struct Avx2 {
  using Vector = __m256;
  using Ints = __m256i;
  using Index = __m256i;
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  static constexpr int kStreamRows = 2;
  static constexpr int kPanelVectors = 2;
  static constexpr int kFloatRows = 6;  // 6 × 2 sums in 16 registers
  static constexpr bool kMatrixDot = false;
  static constexpr int kIntRows = 4;  // 4 × 2 sums of integers; those of floats wait in memory
  static constexpr int kInterleavedVectors = 2;
  static constexpr int kPlainRows = 3;    // 3 rows × 4 weight rows
  static constexpr int kWeightBias = 12;  // vpmaddubsw and vpdpbusd multiply unsigned bytes by signed ones
#ifdef __AVXVNNI__
  static constexpr bool kFastDot = true;
  static constexpr bool kWordSums = false;
#else
  static constexpr bool kFastDot = false;
  static constexpr bool kWordSums = true;
#endif

  // Sums of more rows would not stay in registers. But a panel of floats, to which three limbs go where there is no dot
  // product, takes longer for five rows.
  static constexpr int stream_rows(int limbs) { return limbs == 1 ? 3 : limbs == 3 && !kFastDot ? 5 : 2; }
  // 5 × 2 sums of one limb, 3 × 4 of two, 2 × 6 of three; the floats wait in memory.
  static constexpr int interleaved_block(int limbs) { return limbs == 1 ? 5 : 5 - limbs; }
  // Measured on an EPYC of 2021: integers without panels make 96 G products a second at level 4, with 32 rows a panel
  // 88; at level 0 36, a panel of floats 35 with 16 rows and 41 with 32. nvfp4 has twice the sums to scale.
  static constexpr int64_t interleaved_rows(int limbs, bool nvfp4) {
    if (nvfp4) return limbs == 3 ? 7 : 12;
    return limbs == 3 ? 16 : kMaxRows;
  }

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static Vector broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }

  static float sum(Vector v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }

  static void sum_4(const Vector (&v)[4], float* sums) {
    const __m256 low = _mm256_add_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
    const __m256 high = _mm256_add_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
    const __m256 quads = _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xEE));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
  }

  static Ints zero_ints() { return _mm256_setzero_si256(); }
  static Ints load_ints(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_ints(uint8_t* p, Ints v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Ints broadcast_dword(const uint8_t* p) {
    int32_t dword;
    __builtin_memcpy(&dword, p, sizeof dword);
    return _mm256_set1_epi32(dword);
  }
  static Words to_words(Ints v) { return reinterpret_cast<Words>(v); }
  static Vector from_words(Words v) { return reinterpret_cast<Vector>(v); }
  static Vector to_float(Ints v) { return _mm256_cvtepi32_ps(v); }
  static Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints shift_limb(Ints v) { return _mm256_slli_epi32(v, 8); }

  // kLanes bytes as dwords.
  static Words load_bytes(const uint8_t* p) {
    return to_words(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  // 12 + twice the value of each low nibble; of each high nibble.
  static Ints low_codes(Ints codes) { return look_up(codes); }
  static Ints high_codes(Ints codes) { return look_up(_mm256_srli_epi16(codes, 4)); }

  // acc + Σ of four products, unsigned weights by signed activations, in each lane; of two in each word (kWordSums).
  static Ints dot(Ints acc, Ints weights, Ints x) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(acc, weights, x);
#else
    // Not _mm256_add_epi16: GCC would sum in another order, which takes more registers than there are.
    __asm__("vpaddw %1, %0, %0" : "+x"(acc) : "x"(word_products(weights, x)));
    return acc;
#endif
  }
  // Σ of two products in each word: at most 2 · 24 · 128, no saturation.
  static Ints word_products(Ints weights, Ints x) { return _mm256_maddubs_epi16(weights, x); }
  // Of words: Σ of the two in each lane.
  static Ints add_words(Ints v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }

  static Ints dot_dword(Ints acc, Ints weights, const uint8_t* x) { return dot(acc, weights, broadcast_dword(x)); }
  static void pace() {}  // as avx512.h; not measured here

  template <int Nibble>
  static Vector decode(Ints codes) {
    // vpermps decodes the magnitude; the sign bit is shifted into place.
    const __m256 magnitudes = _mm256_permutevar8x32_ps(_mm256_loadu_ps(kE2M1), _mm256_srli_epi32(codes, 4 * Nibble));
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28 - 4 * Nibble), _mm256_set1_epi32(INT32_MIN));
    return _mm256_or_ps(magnitudes, _mm256_castsi256_ps(sign));
  }

  static void load_transposed(const uint8_t* const* rows, int64_t offset, Ints (&out)[4]) {
    __m256i half[4];
    for (int i = 0; i < 4; ++i) {
      const auto row = [&](int lane) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[4 * lane + i] + offset));
      };
      half[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(1), 1);
    }
    const __m256i low_01 = _mm256_unpacklo_epi32(half[0], half[1]);
    const __m256i low_23 = _mm256_unpacklo_epi32(half[2], half[3]);
    const __m256i high_01 = _mm256_unpackhi_epi32(half[0], half[1]);
    const __m256i high_23 = _mm256_unpackhi_epi32(half[2], half[3]);
    out[0] = _mm256_unpacklo_epi64(low_01, low_23);
    out[1] = _mm256_unpackhi_epi64(low_01, low_23);
    out[2] = _mm256_unpacklo_epi64(high_01, high_23);
    out[3] = _mm256_unpackhi_epi64(high_01, high_23);
  }

  static Index make_index(const int32_t (&lanes)[8]) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
  }
  static Vector permute(Vector v, Index index) { return _mm256_permutevar8x32_ps(v, index); }

  static Vector load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_half(uint16_t* p, Vector v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  // The float16 in the low (high) half of each lane.
  static Vector low_half_to_float(Ints v) { return high_half_to_float(_mm256_slli_epi32(v, 16)); }
  static Vector high_half_to_float(Ints v) {
    const __m256i words = _mm256_srli_epi32(v, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }

 private:
  static Ints look_up(Ints codes) {
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm256_shuffle_epi8(table, _mm256_and_si256(codes, _mm256_set1_epi8(15)));
  }
};

}  // namespace

}  // namespace onnx_moe
