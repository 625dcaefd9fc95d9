// Which scale a block of weights gets.
#pragma once

#include <array>
#include <cstdint>

#include "core/fp4.h"

namespace onnx_moe {

enum class ScaleRule : int32_t { kMse = 0, kEven = 1, kCeil = 2, kFloor = 3, kRceil = 4 };

inline constexpr int64_t kLargestBlock = 128;

// What of a block decides on its scale. importance: of its columns, multiplies the squares of errors.
struct Block {
  const float* weights;
  const float* importance;
  float largest;  // of the magnitudes
};

struct ChosenScale {
  int code;      // as the format stores it
  double error;  // Σ importance · (decoded − weight)², which a float may not hold; only where the rule is kMse
};

// Chooses the scales of a matrix's blocks; they multiply by the matrix's global scale.
class ScaleChooser {
 public:
  ScaleChooser(BlockFormat format, ScaleRule rule, float global_scale);

  ChosenScale choose(const Block& block) const;

  // 1 / (scale · global scale): finite, so that a zero times it stays a zero however small the scale is.
  float inverse(int code) const;

 private:
  float inverse_of(int code) const;
  int rule_code(float largest, ScaleRule rule) const;
  int start_code(float largest) const;
  ChosenScale search_mxfp4(const Block& block) const;
  ChosenScale search_nvfp4(const Block& block) const;
  ChosenScale search_fp4(const Block& block) const;
  float scale(int code) const;

  BlockFormat format_;
  ScaleRule rule_;
  float global_scale_;
  float inverse_global_;
  // nvfp4: of every code, with the global scale.
  std::array<float, 128> scales_{};
  std::array<float, 128> inverses_{};
};

}  // namespace onnx_moe
