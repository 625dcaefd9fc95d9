// AVX2 with FMA and F16C: eight lanes; vpermps decodes the magnitude, the sign bit is shifted into place.
#include <immintrin.h>

#include "kernels/vector_kernel.h"

namespace onnx_moe {

namespace {

struct Avx2 {
  using Vector = __m256;
  using Codes = __m256i;
  using Index = __m256i;
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  static constexpr int kLanes = 8;
  static constexpr int kRowBlock = 3;  // 3 rows × 4 weight rows = 12 of 16 registers

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
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

  static Codes load_codes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

  // kLanes bytes as dwords.
  static Words load_bytes(const uint8_t* p) {
    return reinterpret_cast<Words>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  template <int Nibble>
  static Vector decode(Codes codes) {
    const __m256 magnitudes = _mm256_permutevar8x32_ps(_mm256_loadu_ps(kE2M1), _mm256_srli_epi32(codes, 4 * Nibble));
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28 - 4 * Nibble), _mm256_set1_epi32(INT32_MIN));
    return _mm256_or_ps(magnitudes, _mm256_castsi256_ps(sign));
  }

  static Index index_of_lanes(int64_t block_size) {
    alignas(32) int32_t index[8];
    for (int lane = 0; lane < 8; ++lane) index[lane] = static_cast<int32_t>(8 * lane / block_size);
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(index));
  }
  static Vector permute(Vector v, Index index) { return _mm256_permutevar8x32_ps(v, index); }

  static Vector load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_half(uint16_t* p, Vector v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  // target[j·8 + i] = source[8i + j].
  static void transpose_8(const float* source, float* target) {
    const __m256i stride = _mm256_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56);
    for (int j = 0; j < 8; ++j) store(target + j * kLanes, _mm256_i32gather_ps(source + j, stride, 4));
  }
};

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace

extern const Kernel kAvx2Kernel;
const Kernel kAvx2Kernel = VectorKernel<Avx2>::make("avx2", supported);

}  // namespace onnx_moe
