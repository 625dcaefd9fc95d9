// AVX-512 (F, BW, DQ, VL): sixteen lanes; a code is decoded by one vpermps, which reads just the low four bits of
// each lane.
#include <immintrin.h>

#include "kernels/vector_kernel.h"

namespace onnx_moe {

namespace {

struct Avx512 {
  using Vector = __m512;
  using Codes = __m512i;
  using Index = __m512i;
  typedef uint32_t Words __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
  static constexpr int kLanes = 16;
  static constexpr int kRowBlock = 6;  // 6 rows × 4 weight rows = 24 of 32 registers

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
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

  static Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }

  // kLanes bytes as dwords.
  static Words load_bytes(const uint8_t* p) {
    return reinterpret_cast<Words>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  template <int Nibble>
  static Vector decode(Codes codes) {
    const __m512 values = _mm512_loadu_ps(kE2M1);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * Nibble), values);
  }

  static Index index_of_lanes(int64_t block_size) {
    alignas(64) int32_t index[16];
    for (int lane = 0; lane < 16; ++lane) index[lane] = static_cast<int32_t>(8 * lane / block_size);
    return _mm512_load_si512(index);
  }
  static Vector permute(Vector v, Index index) { return _mm512_permutexvar_ps(index, v); }

  static Vector load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_half(uint16_t* p, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  // target[j·16 + i] = source[8i + j].
  static void transpose_8(const float* source, float* target) {
    const __m512i stride = _mm512_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120);
    for (int j = 0; j < 8; ++j) store(target + j * kLanes, _mm512_i32gather_ps(stride, source + j, 4));
  }
};

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

extern const Kernel kAvx512Kernel;
const Kernel kAvx512Kernel = VectorKernel<Avx512>::make("avx512", supported);

}  // namespace onnx_moe
