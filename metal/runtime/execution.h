// Runs a plan: one command buffer, one wait.
#pragma once

#include <array>
#include <optional>

#include "runtime/buffers.h"
#include "runtime/pipelines.h"
#include "runtime/weights.h"

namespace onnx_moe::metal {

// One call: its tensors for as long as it takes.
class Execution {
 public:
  Execution(const Device& device, Pipelines& pipelines, BufferPool& pool, const Weights& weights);

  // Memory that the plan reads. A null pointer is a tensor that is left out.
  void input(Tensor tensor, const void* data, int64_t bytes);
  // Memory that the plan's result is copied to when it has run.
  void output(Tensor tensor, void* data, int64_t bytes);
  // Throws an Error with Metal's message and the kernels when the device fails.
  void run(const Plan& plan);

 private:
  static constexpr auto kTensors = static_cast<size_t>(Tensor::kNone) + 1;

  struct Output {
    void* data;
    size_t bytes;
    const MTL::Buffer* buffer;
  };

  MTL::Buffer* borrow(size_t bytes);
  BufferSlice& slice(Tensor tensor) { return slices_[static_cast<size_t>(tensor)]; }
  void encode(MTL::ComputeCommandEncoder& encoder, const Launch& launch);
  void submit(const Plan& plan);

  const Device& device_;
  Pipelines& pipelines_;
  BufferPool& pool_;
  const Weights& weights_;
  std::array<BufferSlice, kTensors> slices_{};
  std::vector<MTL::Buffer*> scratch_;
  std::vector<Output> outputs_;
  std::vector<BufferPool::Loan> loans_;
};

}  // namespace onnx_moe::metal
