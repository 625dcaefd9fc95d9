// All experts of a model, numbered: key = layer · experts + expert.
#pragma once

#include <cstdint>

namespace onnx_moe {

struct ExpertBank {
  int64_t layers;
  int64_t experts;  // of a layer

  int64_t size() const { return layers * experts; }
  int64_t key(int64_t layer, int64_t expert) const { return layer * experts + expert; }
  int64_t layer_of(int64_t key) const { return key / experts; }
  int64_t expert_of(int64_t key) const { return key % experts; }
};

}  // namespace onnx_moe
