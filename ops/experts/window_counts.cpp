#include "experts/window_counts.h"

namespace onnx_moe {

namespace {

// `windows`: those of a phase, [WindowCounts::kWindows, keys].
template <typename Number>
void join_neighbours(Number* windows, int64_t keys) {
  for (int64_t window = 0; window < WindowCounts::kWindows; ++window) {
    for (int64_t key = 0; key < keys; ++key) {
      const int64_t first = 2 * window * keys + key;
      const bool joined = window < WindowCounts::kWindows / 2;
      windows[window * keys + key] = joined ? windows[first] + windows[first + keys] : Number{0};
    }
  }
}

}  // namespace

WindowCounts::WindowCounts(const ExpertBank& bank, int64_t phases)
    : tokens_of_window(static_cast<size_t>(phases), kFirstTokens),
      counts(static_cast<size_t>(phases * kWindows * bank.size()), 0),
      mass(counts.size(), 0.0),
      keys_(bank.size()) {}

int64_t WindowCounts::window_of(int64_t phase, int64_t token) {
  int64_t& size = tokens_of_window[static_cast<size_t>(phase)];
  while (token >= size * kWindows) {
    join(phase);
    size *= 2;
  }
  return token / size;
}

void WindowCounts::join(int64_t phase) {
  const size_t first = index(phase, 0, 0);
  join_neighbours(counts.data() + first, keys_);
  join_neighbours(mass.data() + first, keys_);
  if (!probabilities.empty()) join_neighbours(probabilities.data() + first, keys_);
}

}  // namespace onnx_moe
