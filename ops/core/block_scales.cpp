#include "core/block_scales.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/lanes.h"

namespace onnx_moe {

namespace {

constexpr int kE2M1MaxExponent = 2;  // 6 = 1.5 · 2^2
constexpr int kE8M0Bias = 127;
constexpr int kLargestE8M0 = 254;
constexpr int kSmallestE4M3 = 1;  // 2^-9: a scale of 0 would make readers divide by it
constexpr int kSmallestNormalE4M3 = 8;
constexpr int kLargestE4M3 = 0x7E;
constexpr int kSmallestFloat16 = 1;
constexpr int kLargestFloat16 = 0x7BFF;

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

// A type of scales with a mantissa: its codes count up with its values.
struct ScaleType {
  int mantissa_bits;
  int smallest_exponent;  // of a normal value
  int smallest;           // codes
  int largest;
};

constexpr ScaleType kE4M3 = {3, -6, kSmallestE4M3, kLargestE4M3};
constexpr ScaleType kFloat16 = {10, -14, kSmallestFloat16, kLargestFloat16};

// Code of `ideal` ≥ 0 rounded down, up, or to nearest even.
int rounded_code(const ScaleType& type, float ideal, ScaleRule rule) {
  const int dropped = 23 - type.mantissa_bits;
  uint32_t bits = bits_from_float(ideal);
  const uint32_t smallest_normal = static_cast<uint32_t>(type.smallest_exponent + 127) << 23;
  // A subnormal is a multiple of the smallest one.
  if (bits < smallest_normal) {
    const double steps = std::ldexp(static_cast<double>(ideal), type.mantissa_bits - type.smallest_exponent);
    double whole = std::floor(steps);
    if (rule == ScaleRule::kEven) whole = std::nearbyint(steps);
    if (rule == ScaleRule::kCeil || rule == ScaleRule::kRceil) whole = std::ceil(steps);
    return std::max(static_cast<int>(whole), type.smallest);
  }
  if (rule == ScaleRule::kEven) bits += (1u << (dropped - 1)) - 1 + (bits >> dropped & 1u);
  if (rule == ScaleRule::kCeil || rule == ScaleRule::kRceil) bits += (1u << dropped) - 1;
  const auto first = static_cast<uint32_t>(type.smallest_exponent + 126) << type.mantissa_bits;
  return static_cast<int>(std::min(bits >> dropped, first + static_cast<uint32_t>(type.largest)) - first);
}

// Σ importance · (decoded − weight)² of a block under each of 16 scales. In units of 1 / inverse_unit², because the
// squares of weights themselves overflow or vanish from 2^±64 on.
// (Vectors by reference: by value they are an ABI of their own, which clang refuses where it does not inline.)
ONNX_MOE_INLINE void candidate_errors(const Block& block, int64_t block_size, float inverse_unit,
                                      const Lanes& own_scales, const Lanes& own_inverses, Lanes& errors) {
  const Lanes scales = own_scales * inverse_unit;
  const Lanes inverses = own_inverses / inverse_unit;
  errors = Lanes{};
  for (int64_t i = 0; i < block_size; ++i) {
    const float magnitude = std::fabs(block.weights[i]) * inverse_unit;
    Lanes rounded = magnitude * inverses;
    round_to_e2m1(rounded);
    const Lanes difference = rounded * scales - magnitude;
    errors += difference * difference * block.importance[i];
  }
}

// The least of 16 errors and its lane; `preferred` (or -1) wins ties, then the first. Halving keeps it free of branches
// that nothing can predict.
ONNX_MOE_INLINE float least(const Lanes& lanes, int preferred, int* lane) {
  float errors[kLanes], part[kLanes];
  store(lanes, errors);
  store(lanes, part);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] = part[i + half] < part[i] ? part[i + half] : part[i];
  }
  uint32_t equal = 0;
  for (int i = 0; i < kLanes; ++i) equal |= uint32_t{errors[i] == part[0]} << i;
  const bool prefer = preferred >= 0 && (equal >> preferred & 1u) != 0;
  *lane = prefer || equal == 0 ? std::max(preferred, 0) : __builtin_ctz(equal);
  return part[0];
}

ONNX_MOE_WIDE float errors_of_lanes(const Block& block, int64_t block_size, float inverse_unit, const float* scales,
                                    const float* inverses, int preferred, int* best) {
  Lanes scale, inverse, errors;
  load(scales, scale);
  load(inverses, inverse);
  candidate_errors(block, block_size, inverse_unit, scale, inverse, errors);
  return least(errors, preferred, best);
}

// The errors of three mxfp4 scales: half of `middle`, it, and twice it.
ONNX_MOE_WIDE void errors_of_three(const Block& block, float inverse_unit, const float* scales, const float* inverses,
                                   float* errors) {
  Lanes first[2], importance[2];
  for (int half = 0; half < 2; ++half) {
    load(block.weights + kLanes * half, first[half]);
    load(block.importance + kLanes * half, importance[half]);
    absolute(first[half]);
    first[half] *= inverse_unit;
  }
  for (int candidate = 0; candidate < 3; ++candidate) {
    const float scale = scales[candidate] * inverse_unit, inverse = inverses[candidate] / inverse_unit;
    Lanes total{};
    for (int half = 0; half < 2; ++half) {
      Lanes rounded = first[half] * inverse;
      round_to_e2m1(rounded);
      const Lanes difference = rounded * scale - first[half];
      total += difference * difference * importance[half];
    }
    errors[candidate] = sum(total);
  }
}

// 2^-e of a maximum of 2^e or a little more, so that multiplying by it is exact.
float inverse_unit_of(float largest) {
  return float_from_bits((254u - std::min(bits_from_float(largest) >> 23, 253u)) << 23);
}

}  // namespace

ScaleChooser::ScaleChooser(BlockFormat format, ScaleRule rule, float global_scale)
    : format_(format), rule_(rule), global_scale_(global_scale), inverse_global_(1.0f / global_scale) {
  if (format.format != Format::kNvfp4) return;
  for (int code = 0; code < 128; ++code) {
    scales_[static_cast<size_t>(code)] = float_from_e4m3(static_cast<uint8_t>(code)) * global_scale;
    inverses_[static_cast<size_t>(code)] = inverse_of(code);
  }
}

float ScaleChooser::scale(int code) const {
  if (format_.format == Format::kMxfp4) return float_from_e8m0(static_cast<uint8_t>(code)) * global_scale_;
  if (format_.format == Format::kNvfp4) return float_from_e4m3(static_cast<uint8_t>(code)) * global_scale_;
  return float_from_float16(static_cast<uint16_t>(code)) * global_scale_;
}

float ScaleChooser::inverse(int code) const {
  if (format_.format == Format::kNvfp4) return inverses_[static_cast<size_t>(code)];
  return inverse_of(code);
}

float ScaleChooser::inverse_of(int code) const {
  const float value = format_.format == Format::kMxfp4   ? float_from_e8m0(static_cast<uint8_t>(code))
                      : format_.format == Format::kNvfp4 ? float_from_e4m3(static_cast<uint8_t>(code))
                                                         : float_from_float16(static_cast<uint16_t>(code));
  return std::min(inverse_global_ / value, std::numeric_limits<float>::max());
}

int ScaleChooser::neighbour(int code, int steps) const {
  constexpr int kFloat16Step = 64;
  if (format_.format == Format::kMxfp4) return std::clamp(code + steps, 0, kLargestE8M0);
  if (format_.format == Format::kNvfp4) return std::clamp(code + steps, kSmallestE4M3, kLargestE4M3);
  return std::clamp(code + kFloat16Step * steps, kSmallestFloat16, kLargestFloat16);
}

int ScaleChooser::rule_code(float largest, ScaleRule rule) const {
  if (format_.format == Format::kMxfp4) return e8m0_code(largest, rule);
  const ScaleType& type = format_.format == Format::kNvfp4 ? kE4M3 : kFloat16;
  return rounded_code(type, largest / kE2M1Max / global_scale_, rule);
}

ChosenScale ScaleChooser::choose(const Block& block) const {
  if (rule_ != ScaleRule::kMse) return {rule_code(block.largest, rule_), 0.0};
  const float inverse_unit = inverse_unit_of(block.largest);
  ChosenScale chosen = format_.format == Format::kMxfp4   ? search_mxfp4(block)
                       : format_.format == Format::kNvfp4 ? search_nvfp4(block)
                                                          : search_fp4(block);
  chosen.error /= inverse_unit;
  chosen.error /= inverse_unit;
  return chosen;
}

// Two below clips a maximum of at least 8 scales to 3: an error of at least 0.39 max², against at most
// 32 · (max / 16)² = 0.125 max². Two above halves the resolution of one above, which clips nothing.
ChosenScale ScaleChooser::search_mxfp4(const Block& block) const {
  const int start = e8m0_code(block.largest, ScaleRule::kFloor);
  const int codes[3] = {std::max(start - 1, 0), start, std::min(start + 1, kLargestE8M0)};
  float scales[3], inverses[3], errors[3];
  for (int i = 0; i < 3; ++i) {
    scales[i] = scale(codes[i]);
    inverses[i] = inverse(codes[i]);
  }
  errors_of_three(block, inverse_unit_of(block.largest), scales, inverses, errors);
  int best = 1;
  if (errors[0] < errors[best]) best = 0;
  if (errors[2] < errors[best]) best = 2;
  return {codes[best], errors[best]};
}

// Sixteen codes, two octaves: from where the maximum is clipped to half to beyond where it is stored as 3 (a scale that
// stores it as 3 or less is never better than its half). A subnormal scale has fewer digits than the larger ones, which
// may thus fit better, up to where it is stored as 0.5: 29 codes above it.
ChosenScale ScaleChooser::search_nvfp4(const Block& block) const {
  const int start = rounded_code(kE4M3, block.largest / kE2M1Max / global_scale_, ScaleRule::kEven);
  const float inverse_unit = inverse_unit_of(block.largest);
  const bool subnormal = start < kSmallestNormalE4M3;
  int first = subnormal ? kSmallestE4M3 : std::clamp(start - kLanes / 2, kSmallestE4M3, kLargestE4M3 - kLanes + 1);
  const int last = subnormal ? start + 29 : first;
  ChosenScale best{start, std::numeric_limits<double>::infinity()};
  for (; first <= last; first += kLanes) {
    const int preferred = first <= start && start < first + kLanes ? start - first : -1;
    int lane = 0;
    const float error = errors_of_lanes(block, format_.block_size, inverse_unit, &scales_[static_cast<size_t>(first)],
                                        &inverses_[static_cast<size_t>(first)], preferred, &lane);
    if (error < best.error) best = {first + lane, error};
  }
  return best;
}

// float16 has too many codes to try each: what the rules give, and 45 steps of 2.7 % of max / 6 over the range above.
ChosenScale ScaleChooser::search_fp4(const Block& block) const {
  constexpr int kCandidates = 3 * kLanes;
  const int start = rounded_code(kFloat16, block.largest / kE2M1Max / global_scale_, ScaleRule::kEven);
  const float ideal = scale(start) * inverse_global_;
  const float inverse_unit = inverse_unit_of(block.largest);
  int codes[kCandidates] = {start, std::max(start - 1, kSmallestFloat16), std::min(start + 1, kLargestFloat16)};
  for (int i = 3; i < kCandidates; ++i) {
    const float factor = 0.5f + static_cast<float>(i - 3) * (1.25f / (kCandidates - 4));
    codes[i] = std::clamp(int{float16_from_float(ideal * factor)}, kSmallestFloat16, kLargestFloat16);
  }
  ChosenScale best{start, std::numeric_limits<double>::infinity()};
  for (int first = 0; first < kCandidates; first += kLanes) {
    float scales[kLanes], inverses[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      scales[i] = scale(codes[first + i]);
      inverses[i] = inverse(codes[first + i]);
    }
    int lane = 0;
    const float error = errors_of_lanes(block, format_.block_size, inverse_unit, scales, inverses, 0, &lane);
    if (error < best.error) best = {codes[first + lane], error};
  }
  return best;
}

}  // namespace onnx_moe
