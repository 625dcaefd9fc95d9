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

  // By value, the global scale included; `code` is one that a block may have.
  float scale(int code) const;

  // 1 / (scale · global scale): finite, so that a zero times it stays a zero however small the scale is.
  float inverse(int code) const;

  // The code of a scale `steps` further than `code`: an octave each (mxfp4), an eighth of one at most (nvfp4), a
  // sixteenth (fp4); the last one that a block may have where there is none so far off.
  int neighbour(int code, int steps) const;

 private:
  float inverse_of(int code) const;
  int rule_code(float largest, ScaleRule rule) const;
  ChosenScale search_mxfp4(const Block& block) const;
  ChosenScale search_nvfp4(const Block& block) const;
  ChosenScale search_fp4(const Block& block) const;

  BlockFormat format_;
  ScaleRule rule_;
  float global_scale_;
  float inverse_global_;
  // nvfp4: of every code, with the global scale.
  std::array<float, 128> scales_{};
  std::array<float, 128> inverses_{};
};

}  // namespace onnx_moe
