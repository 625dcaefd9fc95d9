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
  FileLocation file;  // of expert 0
  int64_t expert_bytes;
  const uint8_t* mapped;  // where ONNX Runtime has it
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

  int64_t expert_bytes() const {
    int64_t bytes = 0;
    for (const ExpertProjection& projection : projections) {
      bytes += projection.codes.expert_bytes + projection.scales.expert_bytes;
    }
    return bytes;
  }
};

}  // namespace onnx_moe
