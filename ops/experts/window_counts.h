// Counts over time in a fixed number of windows: when they are full, neighbours are joined and windows are twice as
// long.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "experts/bank.h"

namespace onnx_moe {

class WindowCounts {
 public:
  static constexpr int64_t kWindows = 64;
  static constexpr int64_t kFirstTokens = 16;  // of a window, before any are joined

  WindowCounts(const ExpertBank& bank, int64_t phases);

  // The window of a layer's token, by its place among the layer's tokens of the phase. May join windows.
  int64_t window_of(int64_t phase, int64_t token);

  void choose(int64_t phase, int64_t window, int64_t key, double weight) {
    const size_t i = index(phase, window, key);
    ++counts[i];
    mass[i] += weight;
  }
  void add_probability(int64_t phase, int64_t window, int64_t key, double probability) {
    probabilities[index(phase, window, key)] += probability;
  }
  void keep_probabilities() { probabilities.resize(counts.size(), 0.0); }

  std::vector<int64_t> tokens_of_window;  // [phases]
  std::vector<uint32_t> counts;           // [phases, kWindows, keys], as the next two
  std::vector<double> mass;
  std::vector<double> probabilities;  // empty until they are kept

 private:
  size_t index(int64_t phase, int64_t window, int64_t key) const {
    return static_cast<size_t>((phase * kWindows + window) * keys_ + key);
  }
  void join(int64_t phase);

  int64_t keys_;
};

}  // namespace onnx_moe
