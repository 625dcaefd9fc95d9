// Learns, while the model runs, which experts of a layer follow which of the layer before it.
#pragma once

#include <cstdint>
#include <vector>

#include "experts/prefetch_signal.h"

namespace onnx_moe {

// weight[layer][of the layer before][of the layer]: calls that used both, decayed so that the last few hundred uses of
// an expert count. Takes 4 bytes for each; layer 0 follows the last one, a token earlier.
class CrossLayerTable final : public PrefetchSignal {
 public:
  explicit CrossLayerTable(const ExpertBank& bank);

  void routed(const RoutedCall& call) override;
  void predict(int64_t layer, int64_t most, std::vector<int32_t>& experts) const override;

 private:
  float* row(int64_t layer, int32_t before);
  const float* row(int64_t layer, int32_t before) const;
  int64_t before(int64_t layer) const { return layer == 0 ? bank_.layers - 1 : layer - 1; }

  ExpertBank bank_;
  std::vector<float> weights_;
  std::vector<std::vector<int32_t>> last_;  // by layer: its newest call's experts
};

}  // namespace onnx_moe
