// The experts of one node as they lie in the model's external data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/expert_weights.h"
#include "experts/mapped_file.h"

namespace onnx_moe {

// One of a node's inputs that hold a part of every expert, one expert after the other.
struct ExpertTensor {
  std::string name;
  const uint8_t* memory = nullptr;  // where ONNX Runtime has it; null when it is no constant of the graph
  int64_t expert_bytes = 0;
  FileLocation file{};  // of expert 0: the engine looks it up
};

// A projection's codes and scales.
struct ExpertProjection {
  ExpertTensor codes;
  ExpertTensor scales;
};

struct ExpertLayer {
  std::string node;
  int64_t num_experts;
  int64_t top_k;  // experts of one token
  std::vector<ExpertProjection> projections;

  // Calls body(tensor) for codes and scales of each projection.
  template <typename Body>
  void for_each_tensor(Body&& body) {
    for (ExpertProjection& projection : projections) {
      body(projection.codes);
      body(projection.scales);
    }
  }
  template <typename Body>
  void for_each_tensor(Body&& body) const {
    for (const ExpertProjection& projection : projections) {
      body(projection.codes);
      body(projection.scales);
    }
  }
  int64_t expert_bytes() const {
    int64_t bytes = 0;
    for_each_tensor([&](const ExpertTensor& tensor) { bytes += tensor.expert_bytes; });
    return bytes;
  }
};

}  // namespace onnx_moe
