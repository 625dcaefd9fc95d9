#include "experts/cross_layer_table.h"

#include <algorithm>
#include <functional>

namespace onnx_moe {

namespace {

constexpr float kKeep = 0.995F;  // of a row, at each use of its expert

}  // namespace

CrossLayerTable::CrossLayerTable(const ExpertBank& bank)
    : bank_(bank),
      weights_(static_cast<size_t>(bank.layers * bank.experts * bank.experts)),
      last_(static_cast<size_t>(bank.layers)) {}

const float* CrossLayerTable::row(int64_t layer, int32_t before) const {
  return weights_.data() + (layer * bank_.experts + before) * bank_.experts;
}

float* CrossLayerTable::row(int64_t layer, int32_t before) {
  return weights_.data() + (layer * bank_.experts + before) * bank_.experts;
}

void CrossLayerTable::routed(const RoutedCall& call) {
  for (const int32_t previous : last_[static_cast<size_t>(before(call.layer))]) {
    float* const weights = row(call.layer, previous);
    std::for_each(weights, weights + bank_.experts, [](float& weight) { weight *= kKeep; });
    for (int64_t i = 0; i < call.count; ++i) weights[call.experts[i]] += 1;
  }
  last_[static_cast<size_t>(call.layer)].assign(call.experts, call.experts + call.count);
}

void CrossLayerTable::predict(int64_t layer, int64_t most, std::vector<int32_t>& experts) const {
  std::vector<float> scores(static_cast<size_t>(bank_.experts));
  for (const int32_t previous : last_[static_cast<size_t>(before(layer))]) {
    const float* const weights = row(layer, previous);
    std::transform(scores.begin(), scores.end(), weights, scores.begin(), std::plus<>());
  }
  experts.clear();
  for (int32_t expert = 0; expert < bank_.experts; ++expert) {
    if (scores[static_cast<size_t>(expert)] > 0) experts.push_back(expert);
  }
  const auto likelier = [&](int32_t a, int32_t b) {
    const float of_a = scores[static_cast<size_t>(a)];
    const float of_b = scores[static_cast<size_t>(b)];
    return of_a != of_b ? of_a > of_b : a < b;
  };
  const auto end = experts.begin() + std::min<int64_t>(most, static_cast<int64_t>(experts.size()));
  std::partial_sort(experts.begin(), end, experts.end(), likelier);
  experts.erase(end, experts.end());
}

}  // namespace onnx_moe
