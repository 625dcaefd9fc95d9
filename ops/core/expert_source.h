// Where a call gets its experts from when their weights do not all lie in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/dispatch.h"
#include "core/expert_weights.h"

namespace onnx_moe {

// The experts of one call: they stay where they are from the set that they are handed out in to the next one.
class ExpertSource {
 public:
  virtual ~ExpertSource() = default;
  // Experts that lie in memory now and were not handed out before; none when all have been.
  virtual ExpertSet next() = 0;
  // [E]: where a projection's experts are (0: the only one, or gate and up; 1: down). Those of the present set are set.
  virtual const ExpertData* resident(size_t projection) const = 0;
};

// The experts of a node.
class ExpertProvider {
 public:
  virtual ~ExpertProvider() = default;
  // The source for a call with these ids, which must be in range; null when all experts lie where the graph has them.
  virtual std::unique_ptr<ExpertSource> open(const int32_t* expert_ids, int64_t count) = 0;
};

}  // namespace onnx_moe
