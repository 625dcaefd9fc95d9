#include "runtime/execution.h"

#include <cstring>

namespace onnx_moe::metal {

namespace {

std::string kernels_of(const Plan& plan) {
  std::string names;
  for (const Launch& launch : plan.launches) names += (names.empty() ? "" : ", ") + std::string(launch.kernel);
  return names;
}

}  // namespace

Execution::Execution(const Device& device, Pipelines& pipelines, BufferPool& pool, const Weights& weights)
    : device_(device), pipelines_(pipelines), pool_(pool), weights_(weights) {
  slice(Tensor::kNone) = {borrow(16), 0};
}

MTL::Buffer* Execution::borrow(size_t bytes) {
  loans_.push_back(pool_.borrow(bytes));
  return loans_.back().get();
}

void Execution::input(Tensor tensor, const void* data, int64_t bytes) {
  if (!data) return;
  const auto size = static_cast<size_t>(bytes);
  BufferSlice& place = slice(tensor);
  place = weights_.find(data);
  if (place.buffer) return;
  // A copy: other tensors of ONNX Runtime's heap share its pages, and change meanwhile.
  place = {borrow(size), 0};
  std::memcpy(place.buffer->contents(), data, size);
}

void Execution::output(Tensor tensor, void* data, int64_t bytes) {
  if (!data) return;
  const auto size = static_cast<size_t>(bytes);
  slice(tensor) = {borrow(size), 0};
  outputs_.push_back({data, size, slice(tensor).buffer});
}

void Execution::run(const Plan& plan) {
  for (const ScratchMemory& memory : plan.scratch) {
    const auto bytes = static_cast<size_t>(memory.bytes);
    scratch_.push_back(borrow(bytes));
    if (memory.zeroed) std::memset(scratch_.back()->contents(), 0, bytes);
  }
  submit(plan);
  for (const Output& output : outputs_) {
    std::memcpy(output.data, const_cast<MTL::Buffer*>(output.buffer)->contents(), output.bytes);
  }
}

void Execution::submit(const Plan& plan) {
  // First, since they may fail: Metal ends the process when an encoder goes away open.
  std::vector<MTL::ComputePipelineState*> pipelines;
  for (const Launch& launch : plan.launches) pipelines.push_back(pipelines_.get(launch));
  MTL::CommandBuffer* commands = device_.queue().commandBuffer();
  require(commands != nullptr, "Metal: the queue gives no command buffer");
  MTL::ComputeCommandEncoder* encoder = commands->computeCommandEncoder(MTL::DispatchTypeSerial);
  require(encoder != nullptr, "Metal: the command buffer gives no encoder");
  for (size_t i = 0; i < plan.launches.size(); ++i) {
    encoder->setComputePipelineState(pipelines[i]);
    encode(*encoder, plan.launches[i]);
  }
  encoder->endEncoding();
  commands->commit();
  commands->waitUntilCompleted();
  require(commands->status() == MTL::CommandBufferStatusCompleted, "Metal on ", device_.name(), ": ",
          message(commands->error()), " (kernels: ", kernels_of(plan), ")");
}

void Execution::encode(MTL::ComputeCommandEncoder& encoder, const Launch& launch) {
  for (size_t i = 0; i < launch.arguments.size(); ++i) {
    const Argument& argument = launch.arguments[i];
    if (const Bytes* bytes = std::get_if<Bytes>(&argument)) {
      encoder.setBytes(bytes->data.data(), bytes->size, i);
    } else if (const Scratch* scratch = std::get_if<Scratch>(&argument)) {
      encoder.setBuffer(scratch_[scratch->index], 0, i);
    } else {
      const BufferSlice& place = slice(std::get<Tensor>(argument));
      encoder.setBuffer(place.buffer, place.offset, i);
    }
  }
  encoder.dispatchThreadgroups(MTL::Size(static_cast<NS::UInteger>(launch.threadgroups[0]),
                                         static_cast<NS::UInteger>(launch.threadgroups[1]), 1),
                               MTL::Size(static_cast<NS::UInteger>(launch.threads), 1, 1));
}

}  // namespace onnx_moe::metal
