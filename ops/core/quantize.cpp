#include "core/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.h"

// The loops over a block vectorise; where the loader can choose, they are compiled for wider vectors too.
#if defined(__x86_64__) && defined(__linux__)
#define ONNX_MOE_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ONNX_MOE_WIDE
#endif

namespace onnx_moe {

namespace {

constexpr int64_t kLargestBlock = 128;
constexpr int kE2M1MaxExponent = 2;  // 6 = 1.5 · 2^2
constexpr int kE8M0Bias = 127;
constexpr int kLargestE8M0 = 254;
constexpr int kSmallestE4M3 = 1;  // 2^-9: a scale of 0 would make readers divide by it
constexpr int kSmallestNormalE4M3 = 8;
constexpr int kLargestE4M3 = 0x7E;
constexpr int kSmallestFloat16 = 1;
constexpr int kLargestFloat16 = 0x7BFF;

// |value| rounded to the nearest E2M1 value, ties to even, saturated at 6: adding 1.5·2^23 steps rounds to a step.
inline float round_to_e2m1(float magnitude) {
  const float shift = magnitude < 2.0f ? 6291456.0f : magnitude < 4.0f ? 12582912.0f : 25165824.0f;
  const float rounded = (magnitude + shift) - shift;
  return rounded > kE2M1Max ? kE2M1Max : rounded;
}

// Code of an E2M1 value ≥ 0. From 1 on, exponent and mantissa bits count up in step with the codes.
inline uint32_t magnitude_code(float value) {
  return value < 1.0f ? static_cast<uint32_t>(2.0f * value) : (bits_from_float(value) >> 22) - 252u;
}

ONNX_MOE_WIDE float largest_magnitude(const float* values, int64_t count) {
  uint32_t largest = 0;  // as bits, so that a NaN or an infinity comes out on top
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, bits_from_float(values[i]) & 0x7FFFFFFFu);
  return float_from_bits(largest);
}

// In units of 1 / inverse_unit: the squares of weights themselves overflow or vanish from 2^±64 on.
ONNX_MOE_WIDE float squared_error(const float* values, int64_t count, float scale, float inverse, float inverse_unit) {
  float partial[16] = {};
  for (int64_t i = 0; i < count; i += 16) {
    for (int64_t lane = 0; lane < 16; ++lane) {
      const float magnitude = std::fabs(values[i + lane]);
      const float difference = (round_to_e2m1(magnitude * inverse) * scale - magnitude) * inverse_unit;
      partial[lane] += difference * difference;
    }
  }
  float error = 0.0f;
  for (const float part : partial) error += part;
  return error;
}

ONNX_MOE_WIDE void encode(const float* values, int64_t count, float inverse, uint8_t* codes) {
  uint8_t single[kLargestBlock];
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t sign = bits_from_float(values[i]) >> 31;
    single[i] = static_cast<uint8_t>(magnitude_code(round_to_e2m1(std::fabs(values[i]) * inverse)) | sign << 3);
  }
  for (int64_t i = 0; i < count / 2; ++i) codes[i] = static_cast<uint8_t>(single[2 * i] | single[2 * i + 1] << 4);
}

// ---- scales: a format's scales are integers 0 … largest in the order of their values ---------------------------

float scale_value(Format format, int code) {
  if (format == Format::kMxfp4) return float_from_e8m0(static_cast<uint8_t>(code));
  if (format == Format::kNvfp4) return float_from_e4m3(static_cast<uint8_t>(code));
  return float_from_float16(static_cast<uint16_t>(code));
}

int e8m0_code(float largest, ScaleRule rule) {
  uint32_t bits = bits_from_float(largest);
  if (rule == ScaleRule::kEven) bits += 1u << 21;  // half of E2M1's one mantissa bit
  if (rule == ScaleRule::kRceil) bits = bits_from_float(largest / kE2M1Max);
  int exponent = static_cast<int>(bits >> 23) - kE8M0Bias;
  const bool has_mantissa = (bits & 0x7FFFFFu) != 0;
  if ((rule == ScaleRule::kCeil || rule == ScaleRule::kRceil) && has_mantissa) ++exponent;
  if (rule != ScaleRule::kRceil) exponent -= kE2M1MaxExponent;
  return std::clamp(exponent + kE8M0Bias, 0, kLargestE8M0);
}

struct CodeRange {
  int smallest;
  int largest;
};

CodeRange code_range(Format format) {
  if (format == Format::kMxfp4) return {0, kLargestE8M0};
  if (format == Format::kNvfp4) return {kSmallestE4M3, kLargestE4M3};
  return {kSmallestFloat16, kLargestFloat16};
}

// Scale with a mantissa: `ideal` rounded down, up, or to nearest even.
int rounded_code(Format format, float ideal, ScaleRule rule) {
  const CodeRange range = code_range(format);
  int low = range.smallest;
  int high = range.largest + 1;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (scale_value(format, middle) <= ideal ? low : high) = middle;
  }
  if (low == range.largest || rule == ScaleRule::kFloor) return low;
  const float below = scale_value(format, low);
  const float above = scale_value(format, low + 1);
  if (rule == ScaleRule::kCeil || rule == ScaleRule::kRceil) return ideal > below ? low + 1 : low;
  const float middle = below + (above - below) / 2;
  if (ideal == middle) return low + (low & 1);
  return ideal > middle ? low + 1 : low;
}

// One block's quantiser. Scales multiply by the matrix's global scale.
class BlockQuantizer {
 public:
  BlockQuantizer(BlockFormat format, ScaleRule rule, float global_scale)
      : format_(format), rule_(rule), global_scale_(global_scale), inverse_global_(1.0f / global_scale) {}

  int choose(const float* block) const {
    const float largest = largest_magnitude(block, format_.block_size);
    if (rule_ != ScaleRule::kMse) return start_code(largest, rule_);
    return least_error(block, largest);
  }

  // Finite, so that a zero times it stays a zero however small the scale is.
  float inverse(int code) const {
    return std::min(inverse_global_ / scale_value(format_.format, code), std::numeric_limits<float>::max());
  }

 private:
  int start_code(float largest, ScaleRule rule) const {
    if (format_.format == Format::kMxfp4) return e8m0_code(largest, rule);
    return rounded_code(format_.format, largest / kE2M1Max / global_scale_, rule);
  }

  int least_error(const float* block, float largest) const {
    const CodeRange range = code_range(format_.format);
    const int start = start_code(largest, format_.format == Format::kMxfp4 ? ScaleRule::kFloor : ScaleRule::kEven);
    // 2^-e of a maximum of 2^e or a little more, so that multiplying by it is exact.
    const float inverse_unit = float_from_bits((254u - std::min(bits_from_float(largest) >> 23, 253u)) << 23);
    int best = start;
    float best_error = error(block, start, inverse_unit);
    const auto consider = [&](int code) {
      code = std::clamp(code, range.smallest, range.largest);
      const float candidate = error(block, code, inverse_unit);
      if (candidate < best_error) {
        best = code;
        best_error = candidate;
      }
    };
    if (format_.format == Format::kMxfp4) {
      // Two below clips a maximum of at least 8 scales to 3: an error of at least 0.39 max², against at most
      // 32 · (max / 16)² = 0.125 max². Two above halves the resolution of one above, which clips nothing.
      consider(start - 1);
      consider(start + 1);
    } else if (format_.format == Format::kNvfp4) {
      // Eight codes an octave: from where the maximum is clipped to half to where it is stored as 3. A subnormal
      // scale has fewer digits than the larger ones, which may thus fit better, up to where it is stored as 0.5.
      const int reach = start < kSmallestNormalE4M3 ? 29 : 8;
      for (int step = 1; step <= reach; ++step) {
        consider(start - step);
        consider(start + step);
      }
    } else {
      // float16 has too many codes to try each: 3 % steps over the same range, and what rounding down or up gives.
      consider(start - 1);
      consider(start + 1);
      const float ideal = scale_value(format_.format, start);
      for (int step = 16; step <= 64; ++step) {
        consider(rounded_code(format_.format, ideal * static_cast<float>(step) / 32.0f, ScaleRule::kEven));
      }
    }
    return best;
  }

  float error(const float* block, int code, float inverse_unit) const {
    const float scale = scale_value(format_.format, code) * global_scale_;
    return squared_error(block, format_.block_size, scale, inverse(code), inverse_unit);
  }

  BlockFormat format_;
  ScaleRule rule_;
  float global_scale_;
  float inverse_global_;
};

void check_finite(const float* row, int64_t row_index, int64_t columns) {
  if (std::isfinite(largest_magnitude(row, columns))) return;
  for (int64_t i = 0; i < columns; ++i) {
    require(std::isfinite(row[i]), "weights hold ", row[i], " at row ", row_index, ", column ", i,
            ": only finite weights can be quantized");
  }
}

void store_scale(const Fp4Matrix& matrix, int64_t index, int code) {
  if (matrix.format.format == Format::kFp4) {
    static_cast<uint16_t*>(matrix.scales)[index] = static_cast<uint16_t>(code);
  } else {
    static_cast<uint8_t*>(matrix.scales)[index] = static_cast<uint8_t>(code);
  }
}

}  // namespace

void quantize(const Kernel& kernel, const void* weights, ElementType type, ScaleRule rule, const Fp4Matrix& matrix) {
  const int64_t block_size = matrix.format.block_size;
  require(matrix.columns % block_size == 0, "weights have ", matrix.columns,
          " columns, which is no multiple of the block of ", block_size, ": pad them with zeros");
  require(std::isfinite(matrix.global_scale) && matrix.global_scale > 0.0f, "global_scale ", matrix.global_scale,
          " is not a positive number");
  const BlockQuantizer quantizer(matrix.format, rule, matrix.global_scale);
  const int64_t blocks = matrix.format.blocks(matrix.columns);
  std::vector<float> row(static_cast<size_t>(matrix.columns));
  for (int64_t r = 0; r < matrix.rows; ++r) {
    kernel.widen(type, element_at(type, weights, r * matrix.columns), matrix.columns, row.data());
    check_finite(row.data(), r, matrix.columns);
    for (int64_t b = 0; b < blocks; ++b) {
      const float* block = row.data() + b * block_size;
      const int code = quantizer.choose(block);
      store_scale(matrix, r * blocks + b, code);
      encode(block, block_size, quantizer.inverse(code), matrix.codes + (r * matrix.columns + b * block_size) / 2);
    }
  }
}

void dequantize(const Fp4Matrix& matrix, float* weights) {
  const int64_t block_size = matrix.format.block_size;
  const int64_t count = matrix.rows * matrix.columns;
  for (int64_t first = 0; first < count; first += block_size) {
    const float scale = load_scale(matrix.format.format, matrix.scales, first / block_size) * matrix.global_scale;
    for (int64_t i = first; i < first + block_size; ++i) weights[i] = load_code(matrix.codes, i) * scale;
  }
}

}  // namespace onnx_moe
