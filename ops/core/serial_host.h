// The calling thread and the C library's memory, where no other host is at hand.
#pragma once

#include <cstdlib>

#include "core/parallel.h"

namespace onnx_moe {

class SerialHost final : public Host {
 public:
  void parallel_for(Task task, void* state, size_t count) override {
    for (size_t i = 0; i < count; ++i) task(state, i);
  }
  void* allocate(size_t bytes) override { return std::malloc(bytes); }
  void release(void* memory) override { std::free(memory); }
};

}  // namespace onnx_moe
