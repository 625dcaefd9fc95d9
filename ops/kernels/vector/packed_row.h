// Activations as integers. A row is quantised in blocks of 32 with a scale each: x ≈ scale · v, where v is split into
// one to three signed bytes ("limbs", base 256), so that the products with FP4 codes (exact as integers: twice E2M1 is
// 0, ±1, ±2, ±3, ±4, ±6, ±8, ±12) are exact int8 dot products. Three limbs hold 21.4 bits and a sign at the least:
// the relative error stays below 6e-7 even where one value of a block dwarfs the others.
//
// A row is a sequence of chunks of 128 columns. A chunk's digits lie as the codes do, 64 bytes of even columns (low
// nibbles), then 64 of odd ones, for each limb; after them come, for each lane of eight columns, the start of its sum
// and its scale. Kernels that multiply unsigned weights (code + kWeightBias) start at −kWeightBias · Σ v. The starts
// of whole groups follow the last chunk, and after them whether the row's scales fit (below). For interleaved weights,
// whose lanes are weight rows, the start of a group also lies in its lanes' places, beside its scale.
//
// Without an instruction for dot products, sums are words, two a lane (Isa::kWordSums): products of 32 columns and a
// limb fit, if they start there at −kWeightBias · Σ digits. A group then has such a start for each limb.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/kernel.h"
#include "kernels/vector/inline.h"

namespace onnx_moe {
namespace {

constexpr int64_t kChunk = 128;
constexpr int64_t kQuantBlock = 32;
constexpr int kLanesPerChunk = 16;  // a lane is a dword of codes: eight columns

// Scales between 2^-60 and 2^60 fit: the product of two has the sum of their exponents.
constexpr int kExponentBias = 127;
constexpr int kMostExponent = 60;

constexpr int limbs_of(Precision precision) {
  return precision == Precision::kFloat ? 3 : precision == Precision::kHalf ? 2 : 1;
}

// Largest |v|. All limbs stay within [-128, 127], and 32 products with codes of ±12 within an int32.
constexpr int32_t largest_quantised(int limbs) {
  return limbs == 1 ? 127 : limbs == 2 ? 126 << 8 : INT32_MAX / (kQuantBlock * 12);
}

// Columns whose integer products are summed before they are scaled: no more than share a scale on either side.
inline int64_t group_size(const Operands& operands) { return operands.format.block_size < 32 ? 16 : 32; }

// Where the parts of a packed row lie, in bytes.
template <int Limbs>
struct PackedChunk {
  static constexpr int64_t kDigits = 0;  // limb 0 is the lowest
  static constexpr int64_t kStarts = Limbs * kChunk;
  static constexpr int64_t kScales = kStarts + kLanesPerChunk * 4;
  static constexpr int64_t kBytes = kScales + kLanesPerChunk * 4;

  // For interleaved weights: where the first group's start lies, that of limb `limb`. Of the lanes' scales just the
  // first one is read there, and of their starts none.
  static constexpr int64_t group_start(int limb) { return limb == 0 ? kScales + 4 : kStarts + 4 * (limb - 1); }
};

// Whether sums start there rather than at zero: with more limbs they would be shifted, but for those of words.
template <typename Isa, int Limbs>
constexpr bool kSumsStartBiased = Isa::kWordSums || (Isa::kWeightBias != 0 && Limbs == 1);

// Starts of a group, in dwords.
template <typename Isa, int Limbs>
constexpr int kStartsPerGroup = Isa::kWordSums ? Limbs : 1;

inline int64_t chunk_count(const Operands& operands) { return (operands.depth + kChunk - 1) / kChunk; }

template <int Limbs>
int64_t group_starts_offset(const Operands& operands) {
  return chunk_count(operands) * PackedChunk<Limbs>::kBytes;
}

// Of an int32: 1 where all scales of the row fit, 0 otherwise.
template <typename Isa, int Limbs>
int64_t fitting_offset(const Operands& operands) {
  const int64_t groups = chunk_count(operands) * kChunk / group_size(operands);
  return group_starts_offset<Limbs>(operands) + groups * 4 * kStartsPerGroup<Isa, Limbs>;
}

template <typename Isa, int Limbs>
int64_t packed_row_bytes(const Operands& operands) {
  return (fitting_offset<Isa, Limbs>(operands) + 4 + 63) / 64 * 64;
}

template <typename Isa>
int64_t packed_bytes(const Operands& operands) {
  switch (limbs_of(operands.precision)) {
    case 3:
      return packed_row_bytes<Isa, 3>(operands);
    case 2:
      return packed_row_bytes<Isa, 2>(operands);
    default:
      return packed_row_bytes<Isa, 1>(operands);
  }
}

// The scale of 32 values and its reciprocal. With three limbs it is a power of two, so that values of few digits stay
// exact. Not finite: NaN, and the whole row becomes NaN. The scale is no float subnormal: what is far below 2^-100 is
// lost. Zeros may have any scale that fits.
struct QuantScale {
  float scale;
  float inverse;
};

template <int Limbs>
ONNX_MOE_INLINE inline QuantScale quant_scale(const float* values) {
  uint32_t magnitude = 0;
  for (int64_t i = 0; i < kQuantBlock; ++i) {
    const uint32_t bits = bits_from_float(values[i]) & 0x7FFFFFFFu;
    magnitude = bits > magnitude ? bits : magnitude;
  }
  if (magnitude == 0) return {1.0f, 0.0f};
  if (magnitude >= 0x7F800000u) return {NAN, 0.0f};
  const float most = float_from_bits(magnitude);
  constexpr int32_t kLargest = largest_quantised(Limbs);
  constexpr float kSmallest = 0x1p-126f;
  if constexpr (Limbs == 3) {
    static_assert(kLargest == 5592405, "4/3 of 2^22");
    // Half a value's exponent, one more where 3/2 of it, which cannot overflow then, shows a mantissa above 4/3.
    const uint32_t exponent = bits_from_float(0.75f * most) & 0x7F800000u;
    const float scale = float_from_bits(exponent) * 0x1p-21f;
    return scale < kSmallest ? QuantScale{kSmallest, 0x1p126f} : QuantScale{scale, 1.0f / scale};
  }
  const float scale = most / static_cast<float>(kLargest);
  return scale < kSmallest ? QuantScale{kSmallest, 0x1p126f} : QuantScale{scale, static_cast<float>(kLargest) / most};
}

// Quantises a chunk into `values` and `scales`, one for each lane of eight columns. Returns whether the scales fit.
template <int Limbs>
ONNX_MOE_INLINE inline bool quantise_chunk(const float* row, int32_t* values, float* scales) {
  bool fit = true;
  for (int64_t block = 0; block < kChunk / kQuantBlock; ++block, row += kQuantBlock, values += kQuantBlock) {
    const QuantScale quant = quant_scale<Limbs>(row);
    // An infinity or NaN times 0 is no integer; its block's scale makes the row NaN.
    const bool finite = quant.inverse > 0.0f;
    for (int64_t i = 0; i < kQuantBlock; ++i) {
      const float scaled = finite ? row[i] * quant.inverse : 0.0f;
      values[i] = static_cast<int32_t>(std::rint(scaled));
    }
    const float scale = 0.5f * quant.scale;  // the codes are doubled
    fit = fit && scale >= 0x1p-60f && scale <= 0x1p60f;
    for (int lane = 0; lane < 4; ++lane) *scales++ = scale;
  }
  return fit;
}

// v = low byte (signed) + 256 · the rest, limb by limb; even and odd columns apart.
template <int Limbs>
ONNX_MOE_INLINE inline void split_limbs(int32_t* values, uint8_t* digits) {
  for (int limb = 0; limb < Limbs; ++limb, digits += kChunk) {
    uint16_t pairs[kChunk / 2];
    auto* bytes = reinterpret_cast<uint8_t*>(pairs);
    for (int64_t i = 0; i < kChunk; ++i) {
      bytes[i] = static_cast<uint8_t>(values[i]);
      values[i] = (values[i] + 128) >> 8;
    }
    for (int64_t i = 0; i < kChunk / 2; ++i) {
      digits[i] = static_cast<uint8_t>(pairs[i]);
      digits[kChunk / 2 + i] = static_cast<uint8_t>(pairs[i] >> 8);
    }
  }
}

// Where sums are words: products of eight columns a lane with a limb, which fit wherever the sum starts.
template <typename Isa>
ONNX_MOE_INLINE inline typename Isa::Ints words_of_limb(const typename Isa::Ints& even, const typename Isa::Ints& odd,
                                                        const uint8_t* digits) {
  const typename Isa::Ints first = Isa::word_products(even, Isa::load_ints(digits));
  return Isa::dot(first, odd, Isa::load_ints(digits + kChunk / 2));
}

// Σ over eight columns a lane of code · v: `even` and `odd` are a vector's codes, `x` its place in the chunk.
template <typename Isa, int Limbs>
ONNX_MOE_INLINE inline typename Isa::Ints dot_limbs(typename Isa::Ints start, const typename Isa::Ints& even,
                                                    const typename Isa::Ints& odd, const uint8_t* x) {
  typename Isa::Ints sum = start;
  unroll<Limbs>([&](auto index) ONNX_MOE_INLINE {
    const uint8_t* digits = x + (Limbs - 1 - index) * kChunk;
    if constexpr (index > 0) sum = Isa::shift_limb(sum);
    if constexpr (Isa::kWordSums) {
      sum = Isa::add_ints(sum, Isa::add_words(words_of_limb<Isa>(even, odd, digits)));
    } else {
      sum = Isa::dot(sum, even, Isa::load_ints(digits));
      sum = Isa::dot(sum, odd, Isa::load_ints(digits + kChunk / 2));
    }
  });
  return sum;
}

template <typename Isa>
ONNX_MOE_INLINE inline typename Isa::Ints weight_biases() {
  alignas(64) uint8_t bias[4 * Isa::kLanes];
  std::memset(bias, Isa::kWeightBias, sizeof bias);
  return Isa::load_ints(bias);
}

// Where the lanes' sums start.
template <typename Isa, int Limbs>
ONNX_MOE_INLINE inline void store_starts(uint8_t* chunk) {
  const typename Isa::Ints biases = weight_biases<Isa>();
  alignas(64) int32_t starts[kLanesPerChunk];
  for (int64_t lane = 0; lane < kLanesPerChunk; lane += Isa::kLanes) {
    Isa::store_ints(reinterpret_cast<uint8_t*>(starts + lane),
                    dot_limbs<Isa, Limbs>(Isa::zero_ints(), biases, biases, chunk + 4 * lane));
  }
  for (int32_t& start : starts) start = -start;
  std::memcpy(chunk + PackedChunk<Limbs>::kStarts, starts, sizeof starts);
}

// Where the sums of groups of lanes start: of all limbs together, from those of the lanes.
template <int Limbs>
ONNX_MOE_INLINE inline void sum_group_starts(const uint8_t* chunk, int lanes_per_group, int32_t* groups) {
  int32_t starts[kLanesPerChunk];
  std::memcpy(starts, chunk + PackedChunk<Limbs>::kStarts, sizeof starts);
  for (int lane = 0; lane < kLanesPerChunk; lane += lanes_per_group) {
    int32_t sum = 0;
    for (int i = 0; i < lanes_per_group; ++i) sum += starts[lane + i];
    *groups++ = sum;
  }
}

// The same of each limb, where sums are words: both halves of a dword.
template <typename Isa, int Limbs>
ONNX_MOE_INLINE inline void sum_group_words(const uint8_t* chunk, int lanes_per_group, int32_t* groups) {
  const typename Isa::Ints biases = weight_biases<Isa>();
  alignas(64) int16_t words[Limbs][kLanesPerChunk][2];
  for (int limb = 0; limb < Limbs; ++limb) {
    for (int64_t lane = 0; lane < kLanesPerChunk; lane += Isa::kLanes) {
      Isa::store_ints(reinterpret_cast<uint8_t*>(words[limb][lane]),
                      words_of_limb<Isa>(biases, biases, chunk + limb * kChunk + 4 * lane));
    }
  }
  for (int lane = 0; lane < kLanesPerChunk; lane += lanes_per_group) {
    for (int limb = 0; limb < Limbs; ++limb) {
      int16_t start[2] = {0, 0};
      for (int i = 0; i < lanes_per_group; ++i) {
        for (int half = 0; half < 2; ++half) {
          start[half] = static_cast<int16_t>(start[half] - words[limb][lane + i][half]);
        }
      }
      std::memcpy(groups++, start, sizeof start);
    }
  }
}

template <typename Isa, int Limbs>
void pack_row(const Operands& operands, const float* row, uint8_t* packed) {
  using Chunk = PackedChunk<Limbs>;
  constexpr int kStarts = kStartsPerGroup<Isa, Limbs>;
  const auto lanes_per_group = static_cast<int>(group_size(operands) / 8);
  auto* groups = reinterpret_cast<int32_t*>(packed + group_starts_offset<Limbs>(operands));
  auto* fitting = reinterpret_cast<int32_t*>(packed + fitting_offset<Isa, Limbs>(operands));
  bool fit = true;
  for (int64_t first = 0; first < operands.depth; first += kChunk, packed += Chunk::kBytes) {
    alignas(64) float last[kChunk];
    const float* values = row + first;
    if (first + kChunk > operands.depth) {
      const auto rest = static_cast<size_t>(operands.depth - first);
      std::memcpy(last, values, rest * sizeof(float));
      std::memset(last + rest, 0, (kChunk - rest) * sizeof(float));
      values = last;
    }
    alignas(64) int32_t quantised[kChunk];
    fit &= quantise_chunk<Limbs>(values, quantised, reinterpret_cast<float*>(packed + Chunk::kScales));
    split_limbs<Limbs>(quantised, packed);
    store_starts<Isa, Limbs>(packed);
    if constexpr (Isa::kWordSums) {
      sum_group_words<Isa, Limbs>(packed, lanes_per_group, groups);
    } else {
      sum_group_starts<Limbs>(packed, lanes_per_group, groups);
    }
    for (int lane = 0; lane < kLanesPerChunk; lane += lanes_per_group, groups += kStarts) {
      if (operands.layout != WeightLayout::kInterleaved) continue;
      for (int start = 0; start < kStarts; ++start) {
        std::memcpy(packed + Chunk::group_start(start) + 4 * lane, groups + start, sizeof *groups);
      }
    }
  }
  *fitting = fit ? 1 : 0;
}

// Whether the scales of all rows fit.
template <typename Isa, int Limbs>
bool all_fit(const Operands& operands, const Rows& rows) {
  const int64_t offset = fitting_offset<Isa, Limbs>(operands);
  return std::all_of(rows.packed, rows.packed + rows.count, [&](const uint8_t* packed) {
    int32_t fit;
    std::memcpy(&fit, packed + offset, sizeof fit);
    return fit != 0;
  });
}

template <typename Isa>
void pack(const Operands& operands, const float* row, uint8_t* packed) {
  switch (operands.precision) {
    case Precision::kFloat:
      return pack_row<Isa, 3>(operands, row, packed);
    case Precision::kHalf:
      return pack_row<Isa, 2>(operands, row, packed);
    case Precision::kInt8:
      return pack_row<Isa, 1>(operands, row, packed);
  }
}

}  // namespace
}  // namespace onnx_moe
