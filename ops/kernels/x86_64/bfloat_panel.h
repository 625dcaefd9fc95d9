// Panels of weights as bfloat16, as tiles take them: a weight is a code times a block scale, which bfloat16 holds
// exactly for mxfp4 (a power of two) and nvfp4 (six bits), and a sum of two of them for fp4 (thirteen bits).
#pragma once

#include <algorithm>

#include "kernels/vector/panel_source.h"
#include "kernels/x86_64/avx512.h"
#include "kernels/x86_64/bfloat_rows.h"

namespace onnx_moe {
namespace {

// Two neighbouring columns of sixteen weight rows: for word 2·lane + i of a vector of codes' dwords (eight columns a
// lane), the word's low bits are the code of column 2·Pair + i, and its top bit is that code's sign.
template <int Pair>
ONNX_MOE_INLINE inline __m512i code_words(__m512i codes) {
  // Bit offsets of the bytes to take out of each eight: a code at the bottom of the low byte, at the top of the high.
  constexpr auto byte = [](int offset) { return static_cast<int64_t>((offset + 64) % 64); };
  constexpr int kBit = 8 * Pair;
  constexpr int64_t kDword = byte(kBit) | byte(kBit - 4) << 8 | byte(kBit + 4) << 16 | byte(kBit) << 24;
  constexpr int64_t kNext =
      byte(32 + kBit) | byte(32 + kBit - 4) << 8 | byte(32 + kBit + 4) << 16 | byte(32 + kBit) << 24;
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(kDword | kNext << 32), codes);
}

// Magnitudes of codes times (1 + mantissa / 8) as bfloat16 whose exponents are 127 too high, so that subtracting with
// saturation what a scale's exponent lacks of 254 leaves zero zero. Index: code without sign | mantissa << 3.
struct MagnitudeTable {
  alignas(64) uint16_t words[64];

  constexpr MagnitudeTable() : words() {
    constexpr int kEighths[8] = {0, 4, 8, 12, 16, 24, 32, 48};
    for (int i = 0; i < 64; ++i) {
      const int value = kEighths[i % 8] * (8 + i / 8);  // in units of 1/64
      int exponent = 0;
      while (value >> exponent > 1) ++exponent;
      const int mantissa = value == 0 ? 0 : (value << 7 >> exponent) & 0x7F;
      words[i] = static_cast<uint16_t>(value == 0 ? 0 : ((exponent - 6 + 127 + 127) << 7) + mantissa);
    }
  }
};
inline constexpr MagnitudeTable kMagnitudes;

// 254 less the exponent fields of scales, in both words of each lane, as exponents of bfloat16; all ones for a zero.
ONNX_MOE_INLINE inline __m512i lacking_exponents(__m512i scales) {
  const __m512i fields = _mm512_and_si512(_mm512_srli_epi32(scales, 16), _mm512_set1_epi32(0x7F80));
  const __m512i lacking = _mm512_sub_epi32(_mm512_set1_epi32(254 << 7), fields);
  const __mmask16 zero = _mm512_testn_epi32_mask(fields, fields);
  const __m512i words = _mm512_or_si512(lacking, _mm512_slli_epi32(lacking, 16));
  return _mm512_mask_mov_epi32(words, zero, _mm512_set1_epi32(-1));
}

// What is decoded: Weights<format>(scales) is made for a block of sixteen weight rows, and `pair` gives two columns of
// each as bfloat16, in kLimbs vectors whose sum is the weight.
template <Format kFormat>
class Weights;

template <>
class Weights<Format::kMxfp4> {
 public:
  static constexpr int kLimbs = 1;

  ONNX_MOE_INLINE explicit Weights(__m512 scales) : lacking_(lacking_exponents(_mm512_castps_si512(scales))) {}

  template <int Pair>
  ONNX_MOE_INLINE inline void pair(__m512i codes, __m512i (&limbs)[kLimbs]) const {
    const __m512i words = code_words<Pair>(codes);
    // vpermw reads five bits, two more than the magnitude has: the table repeats.
    const __m512i magnitudes = _mm512_permutexvar_epi16(
        words, _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kMagnitudes.words))));
    limbs[0] = _mm512_ternarylogic_epi32(_mm512_subs_epu16(magnitudes, lacking_), words, _mm512_set1_epi16(-0x8000),
                                         0xF8);  // a | (b & c)
  }

 private:
  __m512i lacking_;
};

template <>
class Weights<Format::kNvfp4> {
 public:
  static constexpr int kLimbs = 1;

  ONNX_MOE_INLINE explicit Weights(__m512 scales) : lacking_(lacking_exponents(_mm512_castps_si512(scales))) {
    // Of each scale the sign, at the top of a word, and the three leading bits of the mantissa, at bit 3; in both
    // words.
    const __m512i bits = _mm512_castps_si512(scales);
    const __m512i signs = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x8000));
    const __m512i mantissas = _mm512_and_si512(_mm512_srli_epi32(bits, 17), _mm512_set1_epi32(0x38));
    const __m512i words = _mm512_or_si512(signs, mantissas);
    factor_ = _mm512_or_si512(words, _mm512_slli_epi32(words, 16));
  }

  template <int Pair>
  ONNX_MOE_INLINE inline void pair(__m512i codes, __m512i (&limbs)[kLimbs]) const {
    const __m512i words = _mm512_ternarylogic_epi32(code_words<Pair>(codes), _mm512_set1_epi16(-0x7FF9), factor_,
                                                    0x6A);  // (a & 0x8007) ^ c
    const __m512i magnitudes = _mm512_permutex2var_epi16(_mm512_load_si512(kMagnitudes.words), words,
                                                         _mm512_load_si512(kMagnitudes.words + 32));
    limbs[0] = _mm512_ternarylogic_epi32(_mm512_subs_epu16(magnitudes, lacking_), words, _mm512_set1_epi16(-0x8000),
                                         0xF8);  // a | (b & c)
  }

 private:
  __m512i lacking_;
  __m512i factor_;
};

template <>
class Weights<Format::kFp4> {
 public:
  static constexpr int kLimbs = 2;

  ONNX_MOE_INLINE explicit Weights(__m512 scales) : scales_(scales) {}

  template <int Pair>
  ONNX_MOE_INLINE inline void pair(__m512i codes, __m512i (&limbs)[kLimbs]) const {
    const __m512 even = _mm512_mul_ps(Avx512::decode<2 * Pair>(codes), scales_);
    const __m512 odd = _mm512_mul_ps(Avx512::decode<2 * Pair + 1>(codes), scales_);
    limbs[0] = join(even, odd);
    limbs[1] = join(_mm512_sub_ps(even, leading_bits(even)), _mm512_sub_ps(odd, leading_bits(odd)));
  }

 private:
  ONNX_MOE_INLINE static __m512i join(__m512 even, __m512 odd) {
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd),
                                     _mm512_set1_epi32(~0xFFFF), 0xF8);  // a | (b & c)
  }

  __m512 scales_;
};

// Successive weight rows of an expert; interleaved ones in whole groups.
struct WeightRun {
  const Operands* operands;
  const uint8_t* codes;
  const uint8_t* scales;
  int64_t rows;
};

// Whether every block whose scale does not fit is one of zeros, as quantisers leave them where weights are padded:
// tiles take its weights for zeros, whatever the scale (but for NaN). Only mxfp4 has such scales.
inline bool misfits_are_zeros(const WeightRun& run) {
  const Operands& operands = *run.operands;
  if (operands.format.format != Format::kMxfp4) return false;
  const bool interleaved = operands.layout == WeightLayout::kInterleaved;
  const int64_t blocks = operands.scale_row_bytes();
  const int64_t block_bytes = operands.format.block_size / 2;
  // Of a block: runs of codes, and the distance between them.
  const int64_t run_bytes = interleaved ? 4 : block_bytes;
  const int64_t run_stride = interleaved ? 4 * kGroupRows : block_bytes;
  for (int64_t i = 0; i < run.rows * blocks; ++i) {
    if (scales_fit(Format::kMxfp4, run.scales + i, 1)) continue;
    if (run.scales[i] == 0xFF) return false;
    const int64_t group = i / (blocks * kGroupRows) * (blocks * kGroupRows);
    const int64_t block = (i - group) / kGroupRows;
    const int64_t lane = i % kGroupRows;
    const uint8_t* codes =
        run.codes + (interleaved ? (group + block * kGroupRows) * block_bytes + lane * 4 : i * block_bytes);
    for (int64_t byte = 0; byte < block_bytes; ++byte) {
      if (codes[byte / run_bytes * run_stride + byte % run_bytes] & 0x77) return false;
    }
  }
  return true;
}

// Part of a panel: [step][limb][vector] tiles, whose rows are pairs of columns, sixteen weight rows wide.
template <Format kFormat, int64_t Columns>
class BfloatPanel {
 public:
  static constexpr int kLimbs = Weights<kFormat>::kLimbs;
  static constexpr int kVectors = Avx512::kPanelVectors;

  // Decodes what comes from here on: columns start … end of the source's weight rows. A panel that is not kept holds
  // the last kSteps steps: what nobody reads again would push activations out of the first cache.
  template <typename Source>
  void begin(const Operands& operands, const Source& source, int64_t start, int64_t end, bool kept) {
    depth_ = operands.depth;
    slots_ = kept ? ~int64_t{0} : kSteps - 1;
    start_ = start;
    scales_.load(operands, source, start, end);
  }

  template <typename Source>
  ONNX_MOE_NOINLINE void decode_step(const Source& source, int64_t step, PanelFetch& fetch) {
    const int64_t column = step * kStepColumns;
    const bool whole = start_ + column + kStepColumns / 2 < depth_;
    for (int vector = 0; vector < kVectors; ++vector) {
      fetch.fetch_some();
      __m512i codes[4];
      source.load_codes(vector, start_ + column, codes);
      uint8_t* target = tiles_ + offset(step, 0, vector);
      put<0>(codes, column, vector, target);
      if (whole) {
        put<2>(codes, column, vector, target);
      } else {
        clear_second_half(target);
      }
    }
  }

  const uint8_t* tile(int64_t step, int limb, int vector) const { return tiles_ + offset(step, limb, vector); }

 private:
  static_assert(kUnit == kStepColumns);

  int64_t offset(int64_t step, int limb, int vector) const {
    return (((step & slots_) * kLimbs + limb) * kVectors + vector) * kTileBytes;
  }

  // Sixteen columns, which share their scale: two dwords of codes.
  template <int FirstDword>
  ONNX_MOE_INLINE inline void put(const __m512i (&codes)[4], int64_t column, int vector, uint8_t* target) {
    const Weights<kFormat> weights(_mm512_load_ps(scales_.at(column + 8 * FirstDword) + vector * Avx512::kLanes));
    unroll<2>([&](auto dword) ONNX_MOE_INLINE {
      unroll<4>([&](auto pair) ONNX_MOE_INLINE {
        __m512i limbs[kLimbs];
        weights.template pair<pair>(codes[FirstDword + dword], limbs);
        constexpr int64_t kRow = 4 * (FirstDword + dword) + pair;
        for (int limb = 0; limb < kLimbs; ++limb) {
          _mm512_store_si512(target + limb * kVectors * kTileBytes + kRow * kTileRowBytes, limbs[limb]);
        }
      });
    });
  }

  // Beyond the last column, where there are no scales either.
  static void clear_second_half(uint8_t* target) {
    for (int limb = 0; limb < kLimbs; ++limb) {
      std::memset(target + limb * kVectors * kTileBytes + kTileBytes / 2, 0, kTileBytes / 2);
    }
  }

  static constexpr int64_t kSteps = 4;  // a power of two

  int64_t depth_ = 0;
  int64_t slots_ = 0;  // a step's place is its number, of these bits
  int64_t start_ = 0;
  PanelScales<Avx512, Columns> scales_;
  alignas(64) uint8_t tiles_[Columns / kStepColumns * kLimbs * kVectors * kTileBytes];
};

}  // namespace
}  // namespace onnx_moe
